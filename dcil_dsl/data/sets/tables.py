"""Tables that come with scikit-learn: a row of measurements, a class or a number.

The columns have mean 0 and deviation 1 on the training rows. The held-out rows are drawn once, of
classes in equal shares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import TensorDataset

from dcil_dsl.data.dataset import Dataset
from dcil_dsl.diagnostics.optional import library

of_sklearn, split = library("sklearn.datasets"), library("sklearn.model_selection")
preprocessing = library("sklearn.preprocessing")


def breast_cancer(folder: None, channels: int) -> Dataset:
    """569 tumours, 30 measurements of the nuclei of their cells; malignant or benign.

    Street, Wolberg & Mangasarian 1993, UCI "Breast Cancer Wisconsin (Diagnostic)". 114 held out.
    """
    return _table("breast-cancer", of_sklearn.load_breast_cancer, 114)


def wine(folder: None, channels: int) -> Dataset:
    """178 wines of three growers, 13 measurements of each. Aeberhard & Forina 1992, UCI "Wine".
    36 held out."""
    return _table("wine", of_sklearn.load_wine, 36)


def digits_table(folder: None, channels: int) -> Dataset:
    """The images of `digits` as rows of 64 numbers. 360 held out."""
    return _table("digits-table", of_sklearn.load_digits, 360)


def diabetes(folder: None, channels: int) -> Dataset:
    """442 patients, ten measurements of each; the progression of the disease after a year.

    Efron et al. 2004, "Least angle regression", Annals of Statistics 32. Targets are 25..346.
    89 held out.
    """
    return _table("diabetes", of_sklearn.load_diabetes, 89)


def _table(name: str, load: Callable[[], Any], held_out: int) -> Dataset:
    loaded = load()
    names = tuple(map(str, loaded.get("target_names", ())))
    parts = split.train_test_split(
        loaded.data,
        loaded.target,
        test_size=held_out,
        stratify=loaded.target if names else None,
        random_state=0,
    )
    scaler = preprocessing.StandardScaler().fit(parts[0])
    inputs = (torch.from_numpy(scaler.transform(rows)).float() for rows in parts[:2])
    targets = (torch.from_numpy(values) for values in parts[2:])
    train, val = (
        TensorDataset(rows, own.long() if names else own.float())
        for rows, own in zip(inputs, targets, strict=True)
    )
    return Dataset(name, train, val, names, task="classification" if names else "regression")
