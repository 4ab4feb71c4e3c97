// Prints {abi, bytecode, ...} of Arbiter.sol: node compile.cjs, with npm's solc installed beside it
// or in a folder of NODE_PATH.
const fs = require('fs');
const path = require('path');
const solc = require('solc');
const sources = Object.fromEntries(['Arbiter.sol', 'Lines.sol', 'SoftFloat.sol'].map(
    name => [name, {content: fs.readFileSync(path.join(__dirname, name), 'utf8')}]));
const settings = {optimizer: {enabled: true, runs: 200}, viaIR: true, evmVersion: 'cancun',
                  metadata: {bytecodeHash: 'none'},
                  outputSelection: {'*': {'*': ['abi', 'evm.bytecode.object',
                                                'evm.deployedBytecode.object']}}};
const output = JSON.parse(solc.compile(JSON.stringify({language: 'Solidity', sources, settings})));
const errors = (output.errors || []).filter(e => e.severity === 'error');
if (errors.length) {
  console.error(errors.map(e => e.formattedMessage).join('\n'));
  process.exit(1);
}
const contract = output.contracts['Arbiter.sol'].Arbiter;
console.log(JSON.stringify({compiler: solc.version(), settings, abi: contract.abi,
  bytecode: contract.evm.bytecode.object, deployed: contract.evm.deployedBytecode.object}, null, 1));
