"use strict";
// The extension with stand-ins for VS Code and the client: what it starts, and what it says where
// the server is missing. Run by `npm test`.
const assert = require("node:assert");
const Module = require("node:module");
const test = require("node:test");

const given = { enabled: true, command: ["dcil", "lsp"], model: "torchvision:resnet18", hints: true };
const seen = { clients: [], messages: [], sent: [] };
const on = { settings: undefined, trust: undefined };
let fails = false;

class LanguageClient {
  constructor(id, name, server, client) {
    Object.assign(this, { server, client, stopped: false });
    seen.clients.push(this);
  }
  async start() {
    if (fails) throw new Error("spawn dcil ENOENT");
  }
  async stop() {
    this.stopped = true;
  }
  sendNotification(method, params) {
    seen.sent.push([method, params]);
  }
}

const vscode = {
  workspace: {
    isTrusted: false,
    getConfiguration: () => ({ get: (name) => given[name] }),
    createFileSystemWatcher: (pattern) => pattern,
    onDidChangeConfiguration: (listener) => (on.settings = listener),
    onDidGrantWorkspaceTrust: (listener) => (on.trust = listener),
  },
  window: { showInformationMessage: (text) => seen.messages.push(text) },
};
const load = Module._load;
Module._load = (name, ...rest) =>
  name === "vscode" ? vscode : name === "vscode-languageclient/node" ? { LanguageClient } : load(name, ...rest);
const { activate, deactivate } = require("../extension.js");
const changed = (name) => on.settings({ affectsConfiguration: (asked) => name.startsWith(asked) });
const latest = () => seen.clients[seen.clients.length - 1];

test("the extension starts the command of the settings, and tells it what the user has set", async () => {
  await activate({ subscriptions: [] });
  assert.equal(latest().server.command, "dcil");
  assert.deepEqual(latest().server.args, ["lsp"]);
  assert.equal(latest().server.options.env.PYTHONSAFEPATH, "1");
  assert.deepEqual(latest().client.initializationOptions, {
    model: "torchvision:resnet18", hints: true, trusted: false,
  });
  assert.equal(latest().client.synchronize.fileEvents, "**/*.prune");
});

test("a changed setting and trust that is granted are sent, another command starts another server", async () => {
  vscode.workspace.isTrusted = true;
  on.trust();
  given.hints = false;
  await changed("dcil.hints");
  assert.deepEqual(seen.sent.map(([, params]) => [params.settings.trusted, params.settings.hints]),
    [[true, true], [true, false]]);
  const before = latest();
  given.command = ["/env/bin/dcil", "lsp"];
  await changed("dcil.command");
  assert.ok(before.stopped);
  assert.equal(latest().server.command, "/env/bin/dcil");
});

test("a server that is missing is reported with the way to install it, and one that is off is not started", async () => {
  fails = true;
  await changed("dcil.command");
  assert.match(seen.messages[0], /did not start \(spawn dcil ENOENT\).*pip install 'dcil-dsl\[lsp\]'/);
  given.enabled = false;
  const count = seen.clients.length;
  await changed("dcil.enabled");
  assert.equal(seen.clients.length, count);
  await deactivate();
});
