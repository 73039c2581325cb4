package jail_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/worker/jail"
)

// nobody is an ordinary user of this host.
const nobody = 65534

// account is what the launcher of an ordinary user tells.
type account struct {
	Lacks []string
	UID   int               // the machine's
	Got   map[string]string // what came of the hostile program's tries
	Err   string
}

// unprivileged is a launcher that an ordinary user starts.
func unprivileged(dir string) {
	var r account
	if err := r.run(dir); err != nil {
		r.Err = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		panic(err)
	}
}

func (r *account) run(dir string) error {
	l, err := jail.New(jail.Config{Self: []string{"/proc/self/exe", "stub"}})
	if err != nil {
		return err
	}
	defer l.Close()
	r.Lacks = l.Degraded()
	p := prey{Secret: dir + "/secret", ReadOnly: dir + "/ro", Writable: dir + "/rw", Other: dir, TCP: "127.0.0.1:9", Abstract: "@x"}
	arg, err := json.Marshal(p)
	if err != nil {
		return err
	}
	says, w, err := os.Pipe()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	m, err := l.Launch(context.Background(), vmm.Command{
		Name: "m-0123456789abcdef", Path: self, Args: []string{"hostile", string(arg)}, Files: []*os.File{w}, Stderr: os.Stderr,
		ReadOnly: []string{self, p.ReadOnly}, Writable: []string{p.Writable}, AddressSpaceBytes: 64 << 30, FileBytes: 64 << 30,
	})
	w.Close()
	if err != nil {
		return err
	}
	r.UID = m.UID()
	err = json.NewDecoder(says).Decode(&r.Got)
	<-m.Done()
	return errors.Join(err, m.Err())
}

// Without root the machines are in user namespaces. What is missing is named; all other walls stand.
func TestUnprivileged(t *testing.T) {
	needRoot(t)                           // to become somebody else
	dir, err := os.MkdirTemp("", "jail-") //nolint:usetesting // t.TempDir is closed to others
	must(t, err)
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "test") // where others may execute it
	must(t, errors.Join(os.Chmod(dir, 0o755), copyTo(self(t), program), os.Mkdir(dir+"/ro", 0o755), os.Mkdir(dir+"/rw", 0o755), programs(dir+"/ro")))
	must(t, errors.Join(os.WriteFile(dir+"/secret", []byte("secret"), 0o666), os.WriteFile(dir+"/ro/file", nil, 0o666), os.Chown(dir+"/rw", nobody, nobody)))
	must(t, errors.Join(syscall.Mknod(dir+"/rw/device", syscall.S_IFCHR|0o666, 1<<8|5), os.Chmod(dir+"/rw/device", 0o666)))
	cmd := exec.CommandContext(t.Context(), program, "unprivileged", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	cmd.Dir = "/"
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	var r account
	must(t, json.Unmarshal(out, &r))
	if r.Err != "" {
		t.Fatalf("%s: %s", r.Err, errs.String())
	}
	if want := []string{jail.NoUID, jail.NoCgroup}; !slices.Equal(r.Lacks, want) || r.UID != nobody {
		t.Errorf("it lacks %q and has the uid %d, want %q and %d", r.Lacks, r.UID, want, nobody)
	}
	zero := "0000000000000000"
	want := map[string]string{
		"read shadow": "ENOENT", "read a file not given": "ENOENT", "read another machine's": "ENOENT", "read what it was given": "done",
		"write /": "EROFS", "write read-only": "EROFS", "write writable": "done", "remount read-only": "EPERM", "mount": "EPERM", "unmount": "EPERM",
		"chroot": "EPERM", "open a device": "EACCES", "setuid": "EINVAL", "setgid": "EINVAL", "setgroups": "EPERM", "chown": "EINVAL",
		"user namespace": "EPERM", "network namespace": "EPERM", "reach loopback": "ENETUNREACH", "raise nofile": "EPERM",
		"kill everybody": "ESRCH", "processes": "1 self thread-self", "interfaces": "lo", "setuid program's uid": fmt.Sprint(nobody),
		"a program's capabilities": zero, "cgroup": "/",
		"credentials": fmt.Sprintf("CapAmb %[2]s, CapBnd %[2]s, CapEff %[2]s, CapInh %[2]s, CapPrm %[2]s, Gid %[1]d, Groups , NoNewPrivs 1, Seccomp 2, Uid %[1]d", nobody, zero),
	}
	got := map[string]string{}
	for name := range want {
		got[name] = r.Got[name]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what came of it (-want +got):\n%s", diff)
	}
}
