package lockedfile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx/lockedfile"
	"golang.org/x/sys/unix"
)

// What a file keeps when it is replaced, and who may do that.

const nobody, wheel = 65534, 4321

// asNobody runs a command as another user, who is of the group wheel too.
func asNobody(t *testing.T, name string, args ...string) {
	t.Helper()
	needRoot(t)
	cmd := newCommand(t, name, args...)
	cmd.Path = "/proc/self/exe" // the test binary's own directory may be closed to others
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, Groups: []uint32{wheel}}}
	if err := cmd.Run(); err != nil {
		t.Errorf("%s as another user: %v", name, err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIP: %s needs root", t.Name())
	}
}

// publicDir makes a directory with these permissions that other users can reach.
func publicDir(t *testing.T, perm fs.FileMode) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lockedfile-test")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, perm))
	return dir
}

// write is lockedfile.Write in another process; its error must match what the second
// argument says, and name the path once.
var _ = registerCommand("write", func(args []string) error {
	err := lockedfile.Write(context.Background(), args[0], []byte("new"), 0o640)
	want := map[string]error{"nil": nil, "EACCES": unix.EACCES, "EPERM": unix.EPERM}[args[1]]
	if !errors.Is(err, want) || want != nil && strings.Count(err.Error(), args[0]) != 1 {
		return fmt.Errorf("got %v, want %v", err, want)
	}
	return nil
})

// wantOwner fails unless the file has this mode, owner and group.
func wantOwner(t *testing.T, path string, mode fs.FileMode, uid, gid uint32) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	st := info.Sys().(*syscall.Stat_t)
	if info.Mode() != mode || st.Uid != uid || st.Gid != gid {
		t.Errorf("%v %d:%d, want %v %d:%d", info.Mode(), st.Uid, st.Gid, mode, uid, gid)
	}
}

// acl returns the ACL that lets user uid read, besides what a mode of 0640 says.
func acl(uid uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	const any = ^uint32(0)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, any}, {2, 4, uid}, {4, 4, any}, {16, 4, any}, {32, 0, any}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// attributes returns the names and values of path's extended attributes.
func attributes(t *testing.T, path string) map[string]string {
	t.Helper()
	b := make([]byte, 4096)
	n, err := unix.Listxattr(path, b)
	must(t, err)
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 4096)
		m, err := unix.Getxattr(path, name, v)
		must(t, err)
		all[name] = string(v[:m])
	}
	return all
}

// needAttribute sets an extended attribute, or skips the test.
func needAttribute(t *testing.T, path, name, value string) {
	t.Helper()
	if err := unix.Setxattr(path, name, []byte(value), 0); err != nil {
		t.Skipf("SKIP: %s: cannot set %s: %v", t.Name(), name, err)
	}
}

func TestKeepsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, nil, 0o600))
	for _, mode := range []fs.FileMode{0o600, 0o444, 0o640, 0o777, 0o751 | fs.ModeSetuid | fs.ModeSetgid, 0o000} {
		if mode == 0 && os.Geteuid() != 0 {
			continue // it cannot be opened
		}
		must(t, os.Chmod(path, mode))
		must(t, lockedfile.Write(t.Context(), path, []byte("new"), 0o606))
		wantOwner(t, path, mode, uint32(os.Geteuid()), uint32(os.Getegid()))
	}
}

// A file that is created has the permissions asked for, less the umask.
func TestUmask(t *testing.T) {
	run := exec.Command("sh", "-c", `umask 027; exec "$0" "$@"`)
	cmd := newCommand(t, "write", filepath.Join(t.TempDir(), "file"), "nil")
	run.Env, run.Stderr = cmd.Env, cmd.Stderr
	run.Args = append(run.Args, cmd.Args...)
	must(t, run.Run())
	wantOwner(t, cmd.Args[1], 0o640, uint32(os.Geteuid()), uint32(os.Getegid()))
}

func TestKeepsOwnerACLAndLabel(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Chown(path, 1234, wheel))
	must(t, os.Chmod(path, 0o640|fs.ModeSetgid))
	needAttribute(t, path, "system.posix_acl_access", string(acl(1000)))
	needAttribute(t, path, "user.note", "mine")
	needAttribute(t, path, "security.selinux", "system_u:object_r:etc_t:s0\x00")
	want := attributes(t, path)
	if len(want) != 3 {
		t.Fatalf("attributes %q", want)
	}
	// What is said of the content goes with it: cap_net_raw+ep.
	needAttribute(t, path, "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	must(t, lockedfile.Write(t.Context(), path, []byte("new"), 0o600))
	wantOwner(t, path, 0o640|fs.ModeSetgid, 1234, wheel)
	if got := attributes(t, path); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("attributes %q, want %q", got, want)
	}
}

// A directory gives new files an ACL: one that is created has it, one that is replaced
// and had none has none.
func TestDefaultACL(t *testing.T) {
	dir := t.TempDir()
	path, created := filepath.Join(dir, "file"), filepath.Join(dir, "created")
	must(t, os.WriteFile(path, nil, 0o600))
	needAttribute(t, dir, "system.posix_acl_default", string(acl(1000)))
	must(t, os.Chmod(path, 0o640))
	must(t, lockedfile.Write(t.Context(), path, []byte("new"), 0o600))
	must(t, lockedfile.Write(t.Context(), created, []byte("new"), 0o666))
	if got := attributes(t, path); len(got) != 0 {
		t.Errorf("attributes %q", got)
	}
	wantOwner(t, path, 0o640, uint32(os.Geteuid()), uint32(os.Getegid()))
	if got := attributes(t, created)["system.posix_acl_access"]; !bytes.Equal([]byte(got), acl(1000)) {
		t.Errorf("the created file's ACL is %q", got)
	}
}

// A file of somebody else becomes the writer's, who cannot give it away: without the
// bits that would lend his rights, but with the group, where he is of it.
func TestFileOfSomebodyElse(t *testing.T) {
	dir := publicDir(t, 0o777)
	path := filepath.Join(dir, "file")
	for _, test := range []struct {
		gid, wantGid  int
		mode, newMode fs.FileMode
	}{
		{wheel, wheel, 0o744 | fs.ModeSetuid | fs.ModeSetgid, 0o744 | fs.ModeSetgid},
		{1234, nobody, 0o744 | fs.ModeSetuid | fs.ModeSetgid, 0o744},
		{0, nobody, 0o644, 0o644},
	} {
		os.Remove(path)
		must(t, os.WriteFile(path, []byte("old"), 0o600))
		if os.Geteuid() == 0 {
			must(t, os.Chown(path, 0, test.gid))
			must(t, os.Chmod(path, test.mode))
		}
		asNobody(t, "write", path, "nil")
		wantContent(t, path, "new")
		wantOwner(t, path, test.newMode, nobody, uint32(test.wantGid))
	}
	// Where he may not read it he cannot lock it.
	must(t, os.Chown(path, 0, 0))
	must(t, os.Chmod(path, 0o600))
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	asNobody(t, "write", path, "EACCES")
	wantContent(t, path, "old")
	wantNames(t, dir, "file")
}

// A label that the writer may not set is an error before anything has changed.
func TestLabelOfSomebodyElse(t *testing.T) {
	dir := publicDir(t, 0o777)
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, []byte("old"), 0o644))
	needRoot(t)
	needAttribute(t, path, "security.SMACK64", "label") // of a module that this kernel may lack
	asNobody(t, "write", path, "EPERM")
	wantContent(t, path, "old")
	wantNames(t, dir, "file")
}

// In a sticky directory nobody replaces the files of others, but his own.
func TestStickyDirectory(t *testing.T) {
	dir := publicDir(t, 0o777|fs.ModeSticky)
	path, created := filepath.Join(dir, "file"), filepath.Join(dir, "mine")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	must(t, os.Chmod(path, 0o666))
	asNobody(t, "write", path, "EPERM")
	wantContent(t, path, "old")
	for range 2 {
		asNobody(t, "write", created, "nil")
	}
	// What somebody else left behind there is in nobody's way.
	mark := filepath.Join(dir, lockedfile.MarkOf("other"))
	must(t, os.WriteFile(mark, nil, 0o644))
	must(t, os.WriteFile(mark+"-LEFT", nil, 0o600))
	asNobody(t, "write", filepath.Join(dir, "other"), "nil")
	wantNames(t, dir, filepath.Base(mark), filepath.Base(mark)+"-LEFT", "file", "mine", "other")
}

func TestReadOnlyDirectory(t *testing.T) {
	dir := publicDir(t, 0o755)
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	must(t, os.Chmod(path, 0o666))
	asNobody(t, "write", path, "EACCES")
	asNobody(t, "write", filepath.Join(dir, "created"), "EACCES")
	wantContent(t, path, "old")
	wantNames(t, dir, "file")
}

// Not even root replaces a file that is immutable.
func TestImmutableFile(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|immutable)
	}
	if err != nil {
		t.Skipf("SKIP: %s: no immutable files: %v", t.Name(), err)
	}
	defer unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
	err = lockedfile.Write(t.Context(), path, []byte("new"), 0o600)
	wantErr(t, err, fs.ErrPermission)
	wantPathOnce(t, err, path)
	wantContent(t, path, "old")
	wantNames(t, dir, "file")
}

// A program that runs can be replaced, and the new one be run at once.
func TestRunningProgram(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skipf("SKIP: %s needs sleep", t.Name())
	}
	program, err := os.ReadFile(sleep)
	must(t, err)
	path := filepath.Join(t.TempDir(), "sleep")
	must(t, os.WriteFile(path, program, 0o755))
	cmd := exec.Command(path, "60")
	must(t, cmd.Start())
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	for range 20 {
		must(t, lockedfile.Write(t.Context(), path, program, 0o600))
		must(t, exec.Command(path, "0").Run())
	}
}

func TestSpecialFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(path, 0o600))
	err := lockedfile.Write(t.Context(), path, nil, 0o600)
	wantErr(t, err, errors.ErrUnsupported)
	wantPathOnce(t, err, path)
	_, err = lockedfile.Read(t.Context(), path)
	wantErr(t, err, errors.ErrUnsupported)
	// A path that never leads to the file that opening it gives.
	f, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer f.Close()
	must(t, os.Remove(f.Name()))
	path = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	began := time.Now()
	err = lockedfile.Write(t.Context(), path, nil, 0o600)
	if err == nil {
		t.Error("written to a file without a name")
	} else {
		wantPathOnce(t, err, path)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("after %v", took)
	}
}
