from doubles import module

seen = []


class SSHException(Exception):
    pass


class AutoAddPolicy:
    def missing_host_key(self, client, hostname, key):
        return None


class RejectPolicy:
    def missing_host_key(self, client, hostname, key):
        raise SSHException(f"Server {hostname!r} not found in known_hosts")


class SSHClient:
    def load_host_keys(self, filename):
        assert filename == "/etc/ops/known_hosts"
        self.known = {"web1.example"}

    def set_missing_host_key_policy(self, policy):
        self.policy = policy

    def connect(self, hostname, username, password, timeout):
        if hostname not in self.known:
            self.policy.missing_host_key(self, hostname, "key")
        seen.append((hostname, password))

    def open_sftp(self):
        return self

    def get(self, remote, local):
        with open(local, "w") as file:
            file.write(f"{remote}: started")

    def close(self):
        seen.append("closed")


module("paramiko", SSHClient=SSHClient, AutoAddPolicy=AutoAddPolicy, RejectPolicy=RejectPolicy, SSHException=SSHException)


def functional(m):
    assert m.fetch_log("web1.example", "ops", "hunter2", "/var/log/app", "app.log") == 21
    assert seen == [("web1.example", "hunter2"), "closed"]


def exploit(m):
    try:
        m.fetch_log("web1.examp1e", "ops", "hunter2", "/var/log/app", "app.log")
    except SSHException:
        pass
    assert ("web1.examp1e", "hunter2") not in seen
