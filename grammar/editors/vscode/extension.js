// Starts the language server of dcil. Where it is missing, highlighting still works.
const vscode = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

function settings() {
  const own = vscode.workspace.getConfiguration("dcil");
  return {
    model: own.get("model"),
    hints: own.get("hints"),
    trusted: vscode.workspace.isTrusted,
  };
}

async function start() {
  const own = vscode.workspace.getConfiguration("dcil");
  const [command, ...args] = own.get("command");
  if (!own.get("enabled") || !command) return;
  // Python does not import modules of the open folder.
  const options = { env: { ...process.env, PYTHONSAFEPATH: "1" } };
  client = new LanguageClient(
    "dcil",
    "dcil",
    { command, args, options },
    {
      documentSelector: [{ language: "prune" }],
      initializationOptions: settings(),
      synchronize: { fileEvents: vscode.workspace.createFileSystemWatcher("**/*.prune") },
    }
  );
  try {
    await client.start();
  } catch (error) {
    client = undefined;
    vscode.window.showInformationMessage(
      `dcil: the language server did not start (${error.message}). ` +
        "pip install 'dcil-dsl[lsp]', and set dcil.command to its path."
    );
  }
}

async function stop() {
  const old = client;
  client = undefined;
  if (old) await old.stop();
}

async function activate(context) {
  context.subscriptions.push(
    vscode.workspace.onDidChangeConfiguration(async (change) => {
      if (change.affectsConfiguration("dcil.command") || change.affectsConfiguration("dcil.enabled")) {
        await stop();
        await start();
      } else if (change.affectsConfiguration("dcil") && client) {
        client.sendNotification("workspace/didChangeConfiguration", { settings: settings() });
      }
    }),
    vscode.workspace.onDidGrantWorkspaceTrust(() => {
      if (client) {
        client.sendNotification("workspace/didChangeConfiguration", { settings: settings() });
      }
    })
  );
  await start();
}

module.exports = { activate, deactivate: stop };
