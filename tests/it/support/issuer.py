"""An issuer of OAuth tokens for a test, over TLS: issuer.py CERTIFICATE KEY LIFETIME. Says its port, then a line for each token that
it gave. Ends with its standard input."""
import base64, http.server, json, os, ssl, sys, threading, time

CREDENTIALS = "Basic " + base64.b64encode(b"dave:dave-secret").decode()


def part(claims):
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()


class Issuer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers["Authorization"] != CREDENTIALS:
            return self.answer(401, {"error": "invalid_client", "error_description": "who is that?"})
        if form != "grant_type=client_credentials&scope=records%20of%20all":
            return self.answer(400, {"error": "invalid_request", "error_description": form})
        now = time.time()
        claims = {"sub": "dave", "iat": now, "exp": now + float(sys.argv[3]), "scope": "records of all"}
        self.answer(200, {"access_token": part({"alg": "none"}) + "." + part(claims) + ".", "token_type": "Bearer"})
        print("gave a token", flush=True)

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
os._exit(0)
