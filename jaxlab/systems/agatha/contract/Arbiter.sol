// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Lines} from "./Lines.sol";
import {SoftFloat} from "./SoftFloat.sol";

/// The arbiter of jaxlab.systems.agatha (after arXiv 2105.04919): escrow, bisection of a disputed
/// computation first to one line of its program and then to one basic operation, which it computes.
/// game.py says the same in Python and explains the states.
contract Arbiter {
  enum State {
    None, Requested, Submitted, TraceDue, BisectLine, LineFound, BisectStep, StepFound, Accepted,
    Rejected, Refunded
  }

  struct Task {
    State state;
    bool submitterMoves;
    uint8 depth;
    uint64 deadline;
    uint64 index;
    uint64 count;
    uint64 element;
    uint64 value;
    address requester;
    address submitter;
    address challenger;
    uint256 fee;
    bytes32 program;
    bytes32 parameters;
    bytes32 inputs;
    bytes32 output;
    bytes32 traceRoot;
    bytes32 lineRoot;
    bytes32 node;
    bytes32 lineHash;
    bytes32 stepRoot;
  }

  /// One element of a committed tensor.
  struct Opening {
    uint8 dtype;
    bytes dims;
    bytes32 root;
    bytes chunk;
    bytes32[] path;
  }

  /// What a basic operation reads: an earlier step (value and path) or an element of a tensor whose
  /// commitment stands in the trace (with its line's hash), the parameters or the inputs.
  struct Witness {
    uint64 value;
    bytes32[] path;
    Opening opening;
    bytes32 lineHash;
  }

  error WrongState();
  error WrongRole();
  error WrongPayment();
  error TooEarly();
  error TooLate();
  error BadProof();

  event Moved(uint256 indexed id, State state, bool submitterMoves);

  uint256 public immutable submitterDeposit;
  uint256 public immutable challengerDeposit;
  uint256 public immutable burnPercent;
  uint64 public immutable challengeWindow;
  uint64 public immutable moveTimeout;
  uint256 public burnt;
  uint256 public tasks;
  mapping(uint256 => Task) private _tasks;
  mapping(address => uint256) public credit;

  constructor(uint256 submitterDeposit_, uint256 challengerDeposit_, uint256 burnPercent_,
              uint64 challengeWindow_, uint64 moveTimeout_) {
    submitterDeposit = submitterDeposit_;
    challengerDeposit = challengerDeposit_;
    burnPercent = burnPercent_;
    challengeWindow = challengeWindow_;
    moveTimeout = moveTimeout_;
  }

  // --- the honest path

  function request(bytes32 program, bytes32 parameters, bytes32 inputs) external payable {
    uint256 id = tasks++;
    Task storage t = _tasks[id];
    t.requester = msg.sender;
    t.fee = msg.value;
    t.program = program;
    t.parameters = parameters;
    t.inputs = inputs;
    next(id, t, State.Requested, true);
  }

  function submit(uint256 id, bytes32 output) external payable {
    Task storage t = waiting(id, State.Requested);
    if (msg.value != submitterDeposit) revert WrongPayment();
    t.submitter = msg.sender;
    t.output = output;
    open(id, t);
  }

  /// What the clock decides, once the deadline has passed: anyone may call it.
  function settle(uint256 id) external {
    Task storage t = _tasks[id];
    if (t.state == State.None || t.state >= State.Accepted) revert WrongState();
    if (block.number <= t.deadline) revert TooEarly();
    if (t.state == State.Requested) {
      credit[t.requester] += t.fee;
      end(id, t, State.Refunded);
    } else if (t.state == State.Submitted) {
      credit[t.submitter] += t.fee + submitterDeposit;
      end(id, t, State.Accepted);
    } else if (t.submitterMoves) {
      challengerWins(id, t);
    } else {
      submitterWins(id, t);
    }
  }

  function withdraw() external {
    uint256 amount = credit[msg.sender];
    credit[msg.sender] = 0;
    (bool sent, ) = msg.sender.call{value: amount}("");
    if (!sent) revert WrongPayment();
  }

  // --- a dispute

  function challenge(uint256 id, bytes32 output) external payable {
    Task storage t = waiting(id, State.Submitted);
    if (msg.value != challengerDeposit) revert WrongPayment();
    if (output == t.output) revert BadProof();
    t.challenger = msg.sender;
    next(id, t, State.TraceDue, true);
  }

  /// The root over all lines' outputs, and the proof that the program's outputs are the claimed ones.
  function postTrace(uint256 id, bytes32 traceRoot, uint64 count, bytes32 lineRoot,
                     uint64[] calldata outputs, bytes32[] calldata lineHashes,
                     bytes32[] calldata commitments, bytes32[][] calldata paths) external {
    Task storage t = moving(id, State.TraceDue, true);
    bytes memory header = abi.encodePacked(uint8(5), count, lineRoot);
    bytes32[] memory level = commitments;
    if (commitments.length != outputs.length) revert BadProof();
    for (uint256 i = 0; i < outputs.length; i++) {
      header = abi.encodePacked(header, outputs[i]);
      bytes32 leaf = traceLeaf(outputs[i], lineHashes[i], commitments[i]);
      if (climb(leaf, outputs[i], paths[i]) != traceRoot) revert BadProof();
    }
    if (keccak256(header) != t.program || rootOf(level) != t.output) revert BadProof();
    t.traceRoot = traceRoot;
    t.lineRoot = lineRoot;
    bisect(id, t, State.BisectLine, traceRoot, count);
  }

  function postChildren(uint256 id, bytes32 left, bytes32 right) external {
    Task storage t = bisecting(id, true);
    if (node(left, right) != t.node) revert BadProof();
    next(id, t, t.state, false);
  }

  /// The challenger goes to the first child that differs from his own.
  function choose(uint256 id, bytes32 left, bytes32 right, bool goRight) external {
    Task storage t = bisecting(id, false);
    if (node(left, right) != t.node) revert BadProof();
    t.node = goRight ? right : left;
    t.index = 2 * t.index + (goRight ? 1 : 0);
    t.depth -= 1;
    arrive(id, t, t.state);
  }

  function nameElement(uint256 id, uint64 element) external {
    Task storage t = moving(id, State.LineFound, false);
    t.element = element;
    next(id, t, State.LineFound, true);
  }

  /// Opens the named element of the line's output and commits to the basic operations behind it.
  function postElement(uint256 id, bytes calldata line, bytes32[] calldata linePath,
                       Opening calldata opening, bytes32 stepRoot, bytes32[] calldata lastPath)
      external {
    Task storage t = moving(id, State.LineFound, true);
    bytes32 lineHash = keccak256(abi.encodePacked(uint8(6), line));
    if (climb(lineHash, t.index, linePath) != t.lineRoot) revert BadProof();
    Lines.Layout memory l = Lines.layout(line);
    if (t.element >= Lines.size(line, l)) {
      submitterWins(id, t);
      return;
    }
    (bytes32 commitment, uint64 value) = opened(opening, t.element);
    if (traceLeaf(t.index, lineHash, commitment) != t.node) revert BadProof();
    if (opening.dtype != l.dtype || !Lines.hasShape(line, l, opening.dims)) revert BadProof();
    uint256 count = Lines.steps(line, l);
    t.lineHash = lineHash;
    t.stepRoot = stepRoot;
    t.value = value;
    if (count == 0) {
      t.count = 0;
      next(id, t, State.StepFound, true);
      return;
    }
    if (climb(stepLeaf(count - 1, value), count - 1, lastPath) != stepRoot) revert BadProof();
    bisect(id, t, State.BisectStep, stepRoot, uint64(count));
  }

  /// Opens what the disputed operation reads; the arbiter computes it and ends the dispute.
  function prove(uint256 id, bytes calldata line, uint64 value, Witness[] calldata witnesses)
      external {
    Task storage t = moving(id, State.StepFound, true);
    if (keccak256(abi.encodePacked(uint8(6), line)) != t.lineHash) revert BadProof();
    Lines.Layout memory l = Lines.layout(line);
    uint256 truth;
    if (t.count == 0) {
      value = t.value;
      truth = read(t, line, l, Lines.origin(line, l, t.element), witnesses[0]);
    } else {
      if (stepLeaf(t.index, value) != t.node) revert BadProof();
      (uint256 code, Lines.Ref[4] memory refs, uint256 count) =
          Lines.step(line, l, t.element, t.index);
      uint256[4] memory args;
      for (uint256 i = 0; i < count; i++) args[i] = read(t, line, l, refs[i], witnesses[i]);
      truth = SoftFloat.bop(code, args[0], args[1], args[2], args[3], true);
    }
    if (truth == value) submitterWins(id, t);
    else challengerWins(id, t);
  }

  // --- views

  function task(uint256 id) external view returns (Task memory) {
    return _tasks[id];
  }

  /// Basic operations on arrays of bit patterns, for tests and for measuring their gas.
  function bops(uint256 code, uint64[] calldata a, uint64[] calldata b, uint64[] calldata c,
                uint256 d, bool flush) external view returns (uint64[] memory r, uint256 gas_) {
    r = new uint64[](a.length);
    for (uint256 i = 0; i < a.length; i++) {
      (uint256 x, uint256 y, uint256 z) = (a[i], b[i], c[i]);
      uint256 before = gasleft();
      x = SoftFloat.bop(code, x, y, z, d, flush);
      uint256 used = before - gasleft();
      if (used > gas_) gas_ = used;
      r[i] = uint64(x);
    }
  }

  /// (commitment, value) of an element; reverts with BadProof if the path does not lead to the root.
  function opened(Opening calldata o, uint256 index) public pure returns (bytes32, uint64) {
    uint256 size = 4;
    for (uint256 i = 0; i < o.dims.length; i += 8) size *= uint64(bytes8(o.dims[i:i + 8]));
    uint256 chunk = size > 65536 ? 1024 : 32;
    if (o.chunk.length != chunk) revert BadProof();
    bytes32 leaf = keccak256(abi.encodePacked(uint8(0), o.chunk));
    if (climb(leaf, index * 4 / chunk, o.path) != o.root) revert BadProof();
    bytes32 commitment = keccak256(
        abi.encodePacked(uint8(3), o.dtype, uint8(o.dims.length / 8), o.dims, o.root));
    uint256 at = index * 4 % chunk;
    uint32 w = uint32(bytes4(o.chunk[at:at + 4]));
    return (commitment, (w >> 24) | ((w >> 8) & 0xff00) | ((w & 0xff00) << 8) | ((w & 0xff) << 24));
  }

  // --- inside

  function waiting(uint256 id, State state) private view returns (Task storage t) {
    t = _tasks[id];
    if (t.state != state) revert WrongState();
    if (block.number > t.deadline) revert TooLate();
  }

  function moving(uint256 id, State state, bool submitter) private view returns (Task storage t) {
    t = waiting(id, state);
    if (t.submitterMoves != submitter) revert WrongState();
    if (msg.sender != (submitter ? t.submitter : t.challenger)) revert WrongRole();
  }

  function bisecting(uint256 id, bool submitter) private view returns (Task storage) {
    State state = _tasks[id].state;
    return moving(id, state == State.BisectStep ? state : State.BisectLine, submitter);
  }

  function next(uint256 id, Task storage t, State state, bool submitterMoves) private {
    t.state = state;
    t.submitterMoves = submitterMoves;
    t.deadline = uint64(block.number) + (state == State.Submitted ? challengeWindow : moveTimeout);
    emit Moved(id, state, submitterMoves);
  }

  function bisect(uint256 id, Task storage t, State state, bytes32 root, uint64 count) private {
    uint8 depth = 0;
    while ((uint64(1) << depth) < count) depth++;
    t.node = root;
    t.index = 0;
    t.depth = depth;
    t.count = count;
    arrive(id, t, state);
  }

  function arrive(uint256 id, Task storage t, State state) private {
    if (t.depth > 0) {
      next(id, t, state, true);
    } else if (t.index >= t.count) {  // a padding leaf
      if (t.node == 0) submitterWins(id, t);
      else challengerWins(id, t);
    } else if (state == State.BisectLine) {
      next(id, t, State.LineFound, false);
    } else {
      next(id, t, State.StepFound, true);
    }
  }

  function open(uint256 id, Task storage t) private {
    next(id, t, State.Submitted, false);
  }

  function end(uint256 id, Task storage t, State state) private {
    t.state = state;
    emit Moved(id, state, false);
  }

  /// The claim stands and may be challenged by others, so that no crony can shield a cheat.
  function submitterWins(uint256 id, Task storage t) private {
    uint256 lost = challengerDeposit * burnPercent / 100;
    burnt += lost;
    credit[t.submitter] += challengerDeposit - lost;
    t.challenger = address(0);
    open(id, t);
  }

  function challengerWins(uint256 id, Task storage t) private {
    uint256 lost = submitterDeposit * burnPercent / 100;
    burnt += lost;
    credit[t.challenger] += challengerDeposit + submitterDeposit - lost;
    credit[t.requester] += t.fee;
    end(id, t, State.Rejected);
  }

  function read(Task storage t, bytes calldata line, Lines.Layout memory l, Lines.Ref memory ref,
                Witness calldata w) private view returns (uint256) {
    if (ref.kind == Lines.LITERAL) return ref.value;
    if (ref.kind == Lines.STEP) {
      if (climb(stepLeaf(ref.value, w.value), ref.value, w.path) != t.stepRoot) revert BadProof();
      return w.value;
    }
    (uint256 source, uint256 number) = Lines.operand(line, l, ref.value);
    if (source == 0) return number;
    (bytes32 leaf, uint64 value) = opened(w.opening, ref.at);
    bytes32 root = source == 1 ? t.traceRoot : source == 2 ? t.parameters : t.inputs;
    if (source == 1) leaf = traceLeaf(number, w.lineHash, leaf);
    if (climb(leaf, number, w.path) != root) revert BadProof();
    return value;
  }

  function node(bytes32 left, bytes32 right) private pure returns (bytes32) {
    return keccak256(abi.encodePacked(uint8(1), left, right));
  }

  function traceLeaf(uint256 index, bytes32 lineHash, bytes32 commitment)
      private pure returns (bytes32) {
    return keccak256(abi.encodePacked(uint8(4), uint64(index), lineHash, commitment));
  }

  function stepLeaf(uint256 index, uint256 value) private pure returns (bytes32) {
    return keccak256(abi.encodePacked(uint8(7), uint64(index), uint64(value)));
  }

  function climb(bytes32 leaf, uint256 index, bytes32[] calldata path)
      private pure returns (bytes32) {
    if (index >> path.length != 0) revert BadProof();
    for (uint256 i = 0; i < path.length; i++) {
      leaf = (index >> i) & 1 == 1 ? node(path[i], leaf) : node(leaf, path[i]);
    }
    return leaf;
  }

  /// The root of a tree over these leaves, padded with zeros.
  function rootOf(bytes32[] memory level) private pure returns (bytes32) {
    uint256 n = level.length;
    bytes32 padding = 0;
    while (n > 1) {
      for (uint256 i = 0; i < n; i += 2) {
        level[i / 2] = node(level[i], i + 1 < n ? level[i + 1] : padding);
      }
      n = (n + 1) / 2;
      padding = node(padding, padding);
    }
    return level[0];
  }
}
