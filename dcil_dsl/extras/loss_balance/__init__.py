"""Loss terms weighed by the spread of their gradients: `balance = inverse_dirichlet(...)`."""
