//go:build unix

package pgtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Bouncer starts a PgBouncer in front of the server, with the given pool_mode and
// further settings as "name = value", and returns the folder of its socket, for DSN. It
// ends with the test, which is skipped, by name, where there is no PgBouncer.
func (s *Server) Bouncer(t testing.TB, mode string, settings ...string) (dir string) {
	t.Helper()
	bouncer, err := exec.LookPath("pgbouncer")
	if err != nil {
		bouncer = "/usr/sbin/pgbouncer"
		if _, err := os.Stat(bouncer); err != nil {
			t.Skip("SKIP: pgbouncer is not installed")
		}
	}
	if dir, err = os.MkdirTemp("", "pgb"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if s.cred != nil {
		if err := os.Chown(dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("[databases]\npostgres = host=%[1]s port=%[2]d user=postgres\n[pgbouncer]\nlisten_port = %[2]d\nlisten_addr =\nunix_socket_dir = %[3]s\nunix_socket_mode = 0777\nauth_type = any\npool_mode = %[4]s\nignore_startup_parameters = extra_float_digits\n", s.dir, s.Port(), dir, mode)
	for _, line := range settings {
		conf += line + "\n"
	}
	ini := filepath.Join(dir, "ini")
	if err := os.WriteFile(ini, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := s.Command(bouncer, "-q", ini)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	dismiss := s.StartWatched(cmd, "KILL")
	t.Cleanup(func() { dismiss(); cmd.Process.Kill(); cmd.Wait() })
	for limit := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", filepath.Join(dir, filepath.Base(s.Socket()))); err == nil {
			conn.Close()
			return dir
		}
		if time.Now().After(limit) {
			t.Fatalf("pgbouncer does not start:\n%s", s.Log())
		}
	}
}
