"""A scripted OpenAI-compatible server on this machine."""
import http.server
import json
import threading
import time


class Stub:
  """Serves on 127.0.0.1; each call takes the next of `script`, then 'ok' for ever.

  A step is 'ok', 'garbage', 'empty', 'slow', or a status code. `bodies` are the calls' contents.
  """

  def __init__(self, script=(), slow=1.0):
    self.script, self.bodies, lock = list(script), [], threading.Lock()
    stub = self

    class Handler(http.server.BaseHTTPRequestHandler):

      def do_POST(self):  # pylint: disable=invalid-name
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with lock:
          stub.bodies.append(body)
          step = stub.script.pop(0) if stub.script else 'ok'
        if step == 'slow':
          time.sleep(slow)
        if step == 'nothing':
          self.close_connection = True
          return
        content = json.dumps({'choices': [{'message': {
            'role': 'assistant', 'content': f" echo {body['messages'][-1]['content']} "}}]})
        content = {'garbage': '<html>', 'empty': '{}'}.get(step, content).encode()
        try:
          self.send_response(step if isinstance(step, int) else 200)
          self.send_header('Content-Length', str(len(content)))
          self.end_headers()
          self.wfile.write(content)
        except OSError:  # the client did not wait
          pass

      def log_message(self, *args):
        del args

    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self._server.server_port}/v1'
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def __enter__(self):
    return self

  def __exit__(self, *args):
    self._server.shutdown()
    self._server.server_close()
