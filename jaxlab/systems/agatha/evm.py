"""The arbiter's contract on an Ethereum virtual machine in this process (py-evm by eth-tester).

Needs the extra [agatha]; nothing is imported before `EvmArbiter` is made. No port is opened.
"""
import ast
import json
import pathlib

from jaxlab import config as config_lib
from jaxlab.systems.agatha import bops, game, merkle

FOLDER = pathlib.Path(__file__).parent / 'contract'
ARTEFACT = FOLDER / 'Arbiter.json'
GAS = 16_000_000  # limit of a transaction


def artefact():
  """{'compiler', 'settings', 'abi', 'bytecode', 'deployed'} of the committed contract."""
  return json.loads(ARTEFACT.read_text())


def _opening(opening):
  dims = b''.join(n.to_bytes(8, 'big') for n in opening.shape)
  return (opening.dtype, dims, opening.root, opening.chunk, list(opening.path))


def _encoded(argument):
  """An argument of a message as web3 takes it."""
  if isinstance(argument, game.Witness):
    return (argument.value, list(argument.path), _opening(argument.opening), argument.line_hash)
  if isinstance(argument, merkle.Opening):
    return _opening(argument)
  if isinstance(argument, tuple | list):
    return [_encoded(x) for x in argument]
  return argument


class EvmArbiter:
  """The deployed contract with the interface of `game.PyArbiter`.

  Attributes:
    money: game.Money.
    log: (message, bytes of calldata, gas) of every accepted message.
    deployment_gas: of the deployment.
  """

  def __init__(self, money):
    try:
      import eth_tester
      import web3
    except ImportError as error:
      raise config_lib.ConfigError("agatha needs: pip install 'jaxlab[agatha]'") from error
    game.check_money(money)
    self.money, self.log = money, []
    self._tester = eth_tester.EthereumTester(eth_tester.PyEVMBackend())
    self._web3 = web3.Web3(web3.EthereumTesterProvider(self._tester))
    self._accounts = iter(self._web3.eth.accounts)
    self._deployer = next(self._accounts)
    compiled = artefact()
    factory = self._web3.eth.contract(abi=compiled['abi'], bytecode=compiled['bytecode'])
    sent = factory.constructor(*money).transact({'from': self._deployer, 'gas': GAS})
    receipt = self._web3.eth.get_transaction_receipt(sent)
    self.deployment_gas = receipt['gasUsed']
    self._contract = self._web3.eth.contract(receipt['contractAddress'], abi=compiled['abi'])
    self._errors = {
        bytes(self._web3.keccak(text=f'{entry["name"]}()'))[:4]: entry['name']
        for entry in compiled['abi'] if entry['type'] == 'error'}
    self._parties = {}

  def party(self, name):
    """The address of a party; the same for the same name."""
    if name not in self._parties:
      self._parties[name] = next(self._accounts)
    return self._parties[name]

  def send(self, sender, name, *arguments, value=0):
    """Sends a message in a block of its own; raises game.Refused if the contract reverts."""
    from eth_tester.exceptions import TransactionFailed
    from web3.exceptions import Web3Exception
    game.check_call(name, arguments, value)  # web3 has errors of its own for what it cannot pack
    call = self._contract.get_function_by_name(name)(*map(_encoded, arguments))
    options = {'from': sender, 'value': value, 'gas': GAS}
    data = call.build_transaction({**options, 'gasPrice': self._web3.eth.gas_price})['data']
    try:
      call.call(options)
      receipt = self._web3.eth.get_transaction_receipt(call.transact(options))
    except (TransactionFailed, Web3Exception) as error:
      raise game.Refused(self._reason(error)) from error
    self.log.append((name, len(data) // 2 - 1, receipt['gasUsed']))

  def _reason(self, error):
    """The name of the contract's error; web3 gives its four bytes as the text of a literal."""
    literal = str(error).rpartition(': ')[2]
    data = ast.literal_eval(literal) if literal.startswith(("b'", 'b"')) else b''
    return self._errors.get(data[:4], str(error))

  def request(self, sender, *roots, fee):
    """Sends 'request'; returns the number of the task."""
    self.send(sender, 'request', *roots, value=fee)
    return self._contract.functions.tasks().call() - 1

  def mine(self, blocks):
    """Lets time pass."""
    self._tester.mine_blocks(blocks)

  def task(self, number):
    """The game.Task."""
    fields = self._contract.functions.task(number).call()
    (state, submitter_moves, depth, deadline, index, count, element, value, requester, submitter,
     challenger, fee, program, parameters, inputs, output, trace_root, line_root, node, line_hash,
     step_root) = fields
    return game.Task(game.STATES[state], requester, fee, program, parameters, inputs,
                     submitter_moves, deadline, submitter, challenger, output, trace_root,
                     line_root, node, depth, index, count, element, value, line_hash, step_root)

  def credit(self, party):
    """What the contract owes to a party."""
    return self._contract.functions.credit(party).call()

  def burnt(self):
    """What is burnt."""
    return self._contract.functions.burnt().call()

  def balance(self):
    """What the contract holds, burnt money included."""
    return self._web3.eth.get_balance(self._contract.address)

  def bop(self, name, *args, mode='flush', bits=0):
    """(results, most gas of one) of a BOP on lists of bit patterns, computed by the contract."""
    columns = [[int(x) for x in arg] for arg in args]
    columns += [[0] * len(columns[0])] * (3 - len(columns))
    return self._contract.functions.bops(bops.BOPS[name].code, *columns, bits,
                                         mode == 'flush').call({'gas': 10**9})

  def opened(self, opening, index):
    """merkle.opened by the contract: (commitment, value), or None."""
    from eth_tester.exceptions import TransactionFailed
    from web3.exceptions import Web3Exception
    try:
      return tuple(self._contract.functions.opened(_opening(opening), index).call())
    except (TransactionFailed, Web3Exception):
      return None
