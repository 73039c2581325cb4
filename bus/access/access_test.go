package access_test

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nkeys"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

func key(t *testing.T) (nkeys.KeyPair, string) {
	t.Helper()
	k, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return k, public
}

func hash(t *testing.T, password string) string {
	t.Helper()
	b, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	acme = access.Identity{Role: access.Tenant, Name: "acme"}
	w1   = access.Identity{Role: access.Worker, Name: "w1"}
)

func TestAuthenticate(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	k, public := key(t)
	other, otherPublic := key(t)
	_, expired := key(t)
	c, err := access.New([]access.Credential{
		{NKey: public, Identity: acme, Expires: now.Add(time.Second)}, {NKey: expired, Identity: w1, Expires: now}, {User: "ci", Password: hash(t, "secret"), Identity: acme},
	})
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("nonce")
	signed := func(k nkeys.KeyPair, what string) string {
		sig, err := k.Sign([]byte(what))
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(sig)
	}
	for name, c2 := range map[string]struct {
		login access.Login
		want  string // an identity; empty: denied
	}{
		"nkey":                         {access.Login{NKey: public, Signature: signed(k, "nonce"), Nonce: nonce}, "tenant acme"},
		"signed by another":            {access.Login{NKey: public, Signature: signed(other, "nonce"), Nonce: nonce}, ""},
		"another nonce":                {access.Login{NKey: public, Signature: signed(k, "older"), Nonce: nonce}, ""},
		"no nonce":                     {access.Login{NKey: public, Signature: signed(k, "")}, ""},
		"no signature":                 {access.Login{NKey: public, Nonce: nonce}, ""},
		"nkey as user":                 {access.Login{User: public, Password: "x", Nonce: nonce}, ""},
		"unknown nkey":                 {access.Login{NKey: otherPublic, Signature: signed(other, "nonce"), Nonce: nonce}, ""},
		"expired":                      {access.Login{NKey: expired, Nonce: nonce}, ""},
		"password":                     {access.Login{User: "ci", Password: "secret"}, "tenant acme"},
		"wrong password":               {access.Login{User: "ci", Password: "Secret"}, ""},
		"no password":                  {access.Login{User: "ci"}, ""},
		"user as nkey":                 {access.Login{NKey: "ci", Signature: "x", Nonce: nonce}, ""},
		"nothing":                      {access.Login{}, ""},
		"a password beside a bad nkey": {access.Login{NKey: otherPublic, User: "ci", Password: "secret"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			one, err := c.Authenticate(c2.login, now)
			switch {
			case c2.want == "" && !errors.Is(err, access.ErrDenied):
				t.Errorf("got %v, %v, want ErrDenied", one, err)
			case c2.want != "" && (err != nil || one.Identity.String() != c2.want):
				t.Errorf("got %v, %v, want %s", one, err, c2.want)
			}
		})
	}
}

func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "credentials.yaml")
	_, public := key(t)
	list := []access.Credential{
		{NKey: public, Identity: acme, Expires: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}, {User: "ci", Password: hash(t, "x"), Identity: access.Identity{Role: access.Monitor, Name: "ci"}},
	}
	for _, one := range list {
		if err := access.Change(name, func(l []access.Credential) ([]access.Credential, error) { return append(l, one), nil }); err != nil {
			t.Fatal(err)
		}
	}
	c, err := access.Read(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(list, c.List()); d != "" {
		t.Error(d)
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	refused := errors.New("no")
	if err := access.Change(name, func([]access.Credential) ([]access.Credential, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if err := os.Chmod(name, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := access.Read(name); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: got %v", err)
	}
}

// What was written is made durable under its name: its directory is opened again after the file has got that.
func TestWriteIsDurable(t *testing.T) {
	dir := t.TempDir()
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_MOVED_TO|unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	if err := access.Write(filepath.Join(dir, "users.yaml"), nil); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	n, err := unix.Read(watch, b)
	if err != nil {
		t.Fatal(err)
	}
	named, synced := false, false
	for b = b[:n]; len(b) > 0; { // struct inotify_event of inotify(7)
		mask, size := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
		named = named || mask&unix.IN_MOVED_TO != 0
		synced = synced || named && mask&unix.IN_OPEN != 0 && mask&unix.IN_ISDIR != 0
		b = b[unix.SizeofInotifyEvent+size:]
	}
	if !named || !synced {
		t.Errorf("the file has got its name: %t; its directory was opened after that: %t", named, synced)
	}
}

func TestWrongFiles(t *testing.T) {
	_, public := key(t)
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	accounts, err := account.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":   {"credentials: [{nkey: " + public + ", role: tenant, name: a, expire: 2027-01-01}]", "field expire not found"},
		"no role":       {"credentials: [{nkey: " + public + ", name: a}]", `role ""`},
		"another role":  {"credentials: [{nkey: " + public + ", role: admin, name: a}]", `role "admin"`},
		"two tokens":    {"credentials: [{nkey: " + public + ", role: tenant, name: a.b}]", `name "a.b"`},
		"wildcard":      {"credentials: [{nkey: " + public + ", role: worker, name: '*'}]", `name "*"`},
		"no key":        {"credentials: [{role: tenant, name: a}]", "either nkey or user"},
		"both":          {"credentials: [{nkey: " + public + ", user: u, role: tenant, name: a}]", "either nkey or user"},
		"account's key": {"credentials: [{nkey: " + accounts + ", role: tenant, name: a}]", "begins with U"},
		"plain text":    {"credentials: [{user: u, password: secret, role: tenant, name: a}]", "bcrypt"},
		"twice":         {"credentials: [{nkey: " + public + ", role: tenant, name: a}, {nkey: " + public + ", role: worker, name: a}]", "twice"},
		"no YAML":       {"credentials: [", "yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := access.Read(file); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	empty := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := access.Read(empty); err != nil || len(c.List()) != 0 {
		t.Errorf("an empty file: %v", err)
	}
}

// No two identities share an inbox, and none is within another's.
func TestInboxes(t *testing.T) {
	var all []access.Identity
	for _, role := range []access.Role{access.Tenant, access.Worker, access.Monitor, access.Operator} {
		for _, name := range []string{"a", "worker", "monitor", "W", "-worker", "_", "a-b"} {
			all = append(all, access.Identity{Role: role, Name: name})
		}
	}
	for _, a := range all {
		for _, b := range all {
			if a != b && (a.Role != access.Operator || b.Role != access.Operator) && strings.HasPrefix(b.Inbox()+".", a.Inbox()+".") {
				t.Errorf("%s (%s) hears what %s is told (%s)", a, a.Inbox(), b, b.Inbox())
			}
		}
	}
}

func TestAnswerable(t *testing.T) {
	for _, c := range []struct {
		subject, reply string
		want           bool
	}{
		{"paddock.v1.submit.acme", "_INBOX_acme.x", true},
		{"paddock.v1.submit.acme", "_INBOX.x", true}, // an operator's
		{"paddock.v1.get.acme", "_INBOX-monitor.g.x", true},
		{"paddock.v1.submit.acme", "", false},
		{"paddock.v1.submit.acme", "_INBOX_acme", false},
		{"paddock.v1.submit.acme", "_INBOX_acme2.x", false},
		{"paddock.v1.submit.acme", "_INBOX-worker.acme.x", false},
		{"paddock.v1.submit.acme", "paddock.v1.job.other.x.cancel", false},
		{"paddock.v1.submit.acme", "$JS.API.STREAM.PURGE.EVENTS", false},
		{"paddock.v1.job.acme.x.cancel", "_INBOX_acme.x", true},
		{"paddock.v1.job.acme.x.cancel", "_INBOX_x.x", false},
		{"paddock.v1.fleet.report.w1", "_INBOX-worker.w1.x", true},
		{"paddock.v1.fleet.report.w1", "_INBOX-worker.w2.x", false},
		{"paddock.v1.fleet.report.w1", "_INBOX_w1.x", false},
		{"paddock.v1.fleet.report", "_INBOX_fleet.x", false},
		{"paddock.v1.fleet.report", "_INBOX.x", true},
		{"paddock.v1.fleet.admin.list", "_INBOX-worker.list.x", false},
		{"paddock.v1.fleet.admin.list", "_INBOX-monitor.g.x", true},
		{"paddock.v1.fleet.admin.drain", "_INBOX_default.x", true}, // an operator who is a client as well
		{"paddock.v1.fleet.admin.drain", "", false},
		{"paddock.v1.fleet.admin.drain", "$JS.ACK.EVENTS.x.1.1.1.1.1", false},
		{"paddock.v1.submit", "_INBOX_submit.x", false},
	} {
		if got := access.Answerable(c.subject, c.reply); got != c.want {
			t.Errorf("a request on %s that wants an answer on %q: got %v", c.subject, c.reply, got)
		}
	}
}
