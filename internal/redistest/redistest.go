//go:build unix

// Package redistest starts Redis and Valkey servers for tests: in a temporary folder, as a
// user other than root, on a unix socket and on a loopback address.
package redistest

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const patience = time.Minute

// A Server is a Redis or Valkey server that ends with the test.
type Server struct {
	t       testing.TB
	program string
	dir     string
	addr    *net.TCPAddr
	cred    *syscall.Credential
	options []string
	cmd     *exec.Cmd
}

// Programs returns the servers that are installed, or the one that REDIS names.
func Programs(t testing.TB) (found []string) {
	if p := os.Getenv("REDIS"); p != "" {
		return []string{p}
	}
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		t.Skip("SKIP: neither redis-server nor valkey-server is installed, set REDIS to the path of one")
	}
	return found
}

// Start starts a server with options as on its command line: "--name", "value".
func Start(t testing.TB, options ...string) *Server {
	t.Helper()
	return StartProgram(t, Programs(t)[0], options...)
}

// StartProgram starts a server of that program.
func StartProgram(t testing.TB, program string, options ...string) *Server {
	t.Helper()
	s := &Server{t: t, program: program, options: options}
	var err error
	if s.dir, err = os.MkdirTemp("", "redis"); err != nil { // t.TempDir is too long for a socket
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	if os.Geteuid() == 0 {
		s.cred = otherUser(t)
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The server needs its port again after a crash: on an address of its own it is as
	// good as sure to stay free.
	l, err := net.Listen("tcp", net.JoinHostPort(net.IPv4(127, byte(1+rand.N(250)), byte(rand.N(256)), byte(1+rand.N(250))).String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().(*net.TCPAddr)
	l.Close()
	t.Cleanup(s.Kill)
	s.run()
	return s
}

func otherUser(t testing.TB) *syscall.Credential {
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Skipf("SKIP: the server is not to run as root: %v", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// Socket returns the path of the server's socket.
func (s *Server) Socket() string { return filepath.Join(s.dir, "socket") }

// Addr returns where the server listens for TCP.
func (s *Server) Addr() *net.TCPAddr { return s.addr }

// run starts the server and returns when it answers.
func (s *Server) run() {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.program, append([]string{"--bind", s.addr.IP.String(), "--port", strconv.Itoa(s.addr.Port), "--protected-mode", "no",
		"--unixsocket", s.Socket(), "--unixsocketperm", "777", "--save", ""}, s.options...)...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = s.dir, log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setpgid: true}
	endWithTest(s.cmd.SysProcAttr)
	if err := s.cmd.Start(); err != nil {
		if s.cred != nil && os.IsPermission(err) {
			s.t.Skipf("SKIP: the server cannot run as another user here: %v", err)
		}
		s.t.Fatal(err)
	}
	for limit := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if err = s.ping(); err == nil {
			return
		}
		if time.Now().After(limit) {
			text, _ := os.ReadFile(log.Name())
			s.t.Fatalf("%s does not start: %v\n%s", s.program, err, text)
		}
	}
}

// ping returns nil where the server answers and has read its data.
func (s *Server) ping() error {
	c, err := net.Dial("unix", s.Socket())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "+PONG") && !strings.HasPrefix(line, "-NOAUTH") {
		err = fmt.Errorf("it says %q", line)
	}
	return err
}

// Kill ends the server as a crash does.
func (s *Server) Kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}

// Signal sends the server a signal, such as SIGSTOP.
func (s *Server) Signal(sig syscall.Signal) {
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Error(err)
	}
}

// Restart kills the server and starts it again, in the same place.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.run()
}
