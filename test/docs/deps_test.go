package docs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// toolbox makes a directory of commands that stands for all of PATH: some of this host's own, and the scripts that are given.
func toolbox(t *testing.T, scripts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{
		"bash", "awk", "basename", "cat", "chmod", "cp", "dirname", "env", "grep", "head", "id", "ln", "mktemp", "rm", "sed", "sort", "tail", "true",
	} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("%v: the scripts are for Debian", err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, script := range scripts {
		path := filepath.Join(dir, name)
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/bash\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// script runs one of deploy/ with a toolbox for PATH, and gives what it printed and whether it succeeded.
func script(t *testing.T, box, name string, args ...string) (said string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join("deploy", name), args...)
	cmd.Env = []string{"PATH=" + box, "HOME=" + t.TempDir(), "BOX=" + box}
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// fakeGo is a go that says what it is.
func fakeGo(version, toolchain string) string {
	return `case $2 in GOVERSION) echo ` + version + ` ;; GOTOOLCHAIN) echo "` + toolchain + `" ;; esac
`
}

// debian is an apt whose golang-go has a version of its own, and another in the backports where those are among the sources.
func debian(stable, backports string) map[string]string {
	return map[string]string{
		"apt-cache": `[ "$1" = policy ] && echo "  Candidate: 2:` + stable + `~1"
true`,
		"apt-get": `echo "$@" >>"$BOX/apt.log"
case "$*" in
*-backports\ golang-go) v=` + backports + ` ;;
*golang-go) v=` + stable + ` ;;
*) exit 0 ;;
esac
[ "$v" ] || exit 1
printf '%s\n' '#!/bin/bash' "case \$2 in GOVERSION) echo go$v ;; GOTOOLCHAIN) echo auto ;; esac" >"$BOX/go.new"
chmod +x "$BOX/go.new"
rm -f "$BOX/go"
ln "$BOX/go.new" "$BOX/go"
`,
	}
}

// needDebian skips, or fails where REQUIRE_PACKAGES says so, where a release has no name, by which its backports are called.
func needDebian(t *testing.T) {
	t.Helper()
	if b, err := os.ReadFile("/etc/os-release"); err != nil || !strings.Contains(string(b), "VERSION_CODENAME=") {
		missing(t, errors.New("SKIPPED: no Debian: its backports have no name here"))
	}
}

// TestInstallDepsGo shows which go install-deps.sh takes, which it replaces, and what it says where none can be had.
func TestInstallDepsGo(t *testing.T) {
	needDebian(t)
	const (
		nothing = ""
		old     = "unpack one from https://go.dev/dl/"
		local   = "GOTOOLCHAIN=auto"
	)
	for _, tt := range []struct {
		name, go_, apt string // apt is "stable backports"
		installs       string // part of the apt-get command that has golang-go
		refuses        string // part of what is said; empty where it succeeds
	}{
		{"new enough", fakeGo("go1.26.0", "local"), "1.24 ", nothing, ""},
		{"newer", fakeGo("go1.30.2", "local"), "1.24 ", nothing, ""},
		{"fetches another", fakeGo("go1.21.0", "auto"), "1.24 ", nothing, ""},
		{"fetches another than its own", fakeGo("go1.24.4", "go1.24.4+auto"), "1.24 ", nothing, ""},
		{"may not fetch another", fakeGo("go1.25.3", "local"), "1.27 ", nothing, local},
		{"is told to be another", fakeGo("go1.25.3", "go1.25.3"), "1.27 ", nothing, local},
		{"knows no other, so that it prints no GOTOOLCHAIN", fakeGo("go1.20.14", ""), "1.24 ", "install -y --no-install-recommends golang-go", ""},
		{"none, Debian 13", "", "1.24 1.27", "install -y --no-install-recommends golang-go", ""},
		{"none, Debian 12", "", "1.19 1.23", "-backports golang-go", ""},
		{"Debian 12's own", fakeGo("go1.19.8", ""), "1.19 1.23", "-backports golang-go", ""},
		{"no backports", fakeGo("go1.19.8", ""), "1.19 ", "-backports golang-go", old},
		{"what was installed is too old", "", "1.19 1.20", "-backports golang-go", old},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stable, backports, _ := strings.Cut(tt.apt, " ")
			scripts := debian(stable, backports)
			scripts["id"] = "echo 0"
			if tt.go_ != "" {
				scripts["go"] = tt.go_
			}
			box := toolbox(t, scripts)
			said, ok := script(t, box, "install-deps.sh", "run")
			if ok != (tt.refuses == "") || !strings.Contains(said, tt.refuses) {
				t.Errorf("succeeded: %t; want %q in\n%s", ok, tt.refuses, said)
			}
			b, _ := os.ReadFile(filepath.Join(box, "apt.log"))
			did := ""
			for line := range strings.Lines(string(b)) {
				if strings.Contains(line, "golang-go") {
					did += line
				}
			}
			if (did == "") != (tt.installs == "") || !strings.Contains(did, tt.installs) {
				t.Errorf("installed Go by %q, want %q in it", did, tt.installs)
			}
		})
	}
}

// TestInstallDepsNames shows that what is missing is installed by its package's name, with the reason, and as root.
func TestInstallDepsNames(t *testing.T) {
	scripts := debian("1.24", "")
	scripts["go"] = fakeGo("go1.26.0", "auto")
	scripts["id"] = "echo 1000"
	scripts["sudo"] = `echo sudo >>"$BOX/apt.log"; exec "$@"`
	box := toolbox(t, scripts)
	said, ok := script(t, box, "install-deps.sh", "test")
	b, _ := os.ReadFile(filepath.Join(box, "apt.log"))
	if want := "sudo\n-q -o DPkg::Lock::Timeout=300 update\nsudo\n-q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends qemu-system-x86 mmdebstrap"; !ok || !strings.HasPrefix(string(b), want) {
		t.Errorf("did\n%s\nand said\n%s", b, said)
	}
	for _, want := range []string{"qemu-system-x86: runs the virtual machines", "gcc: the race detector needs it", "python3-venv: "} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in\n%s", want, said)
		}
	}
	delete(scripts, "sudo")
	if said, ok := script(t, toolbox(t, scripts), "install-deps.sh", "run"); ok || !strings.Contains(said, "install as root: apt-get install qemu-system-x86") {
		t.Errorf("without sudo: succeeded: %t\n%s", ok, said)
	}
}

// TestInstallDepsValkey shows where Valkey comes from: Debian 13 has it, Debian 12 in its backports.
func TestInstallDepsValkey(t *testing.T) {
	needDebian(t)
	for _, tt := range []struct {
		name, policy string // of valkey-server
		there        bool
		installs     string
	}{
		{"Debian 13", "  Candidate: 8.1.1+dfsg1-3", false, "install -y --no-install-recommends valkey-server"},
		{"Debian 12", "", false, "-backports valkey-server"},
		{"Debian 12 with the backports' list", "  Candidate: (none)", false, "-backports valkey-server"},
		{"it is there", "", true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			scripts := debian("1.24", "")
			scripts["go"] = fakeGo("go1.26.0", "auto")
			scripts["id"] = "echo 0"
			scripts["apt-cache"] = `[ "$1" = policy ] && echo "` + tt.policy + `"
true`
			if tt.there {
				scripts["valkey-server"] = ""
			}
			box := toolbox(t, scripts)
			if said, ok := script(t, box, "install-deps.sh", "test"); !ok || strings.Contains(said, "valkey-server: is what") == tt.there {
				t.Errorf("succeeded: %t\n%s", ok, said)
			}
			b, _ := os.ReadFile(filepath.Join(box, "apt.log"))
			did := ""
			for line := range strings.Lines(string(b)) {
				if strings.Contains(line, "valkey") {
					did += line
				}
			}
			if (did == "") != tt.there || !strings.Contains(did, tt.installs) {
				t.Errorf("installed Valkey by %q, want %q in it", did, tt.installs)
			}
		})
	}
}

// TestAsRoot shows what of somebody's environment gets to root: all but where their caches are.
func TestAsRoot(t *testing.T) {
	scripts := map[string]string{"id": "echo 1000", "sudo": `while [ "${1#-}" != "$1" ]; do printf "%s\\n" "$1"; shift; done; export PATH=/nowhere GOPATH=/home/me/go; exec "$BOX/$1" "${@:2}"`}
	box := toolbox(t, scripts)
	said, ok := script(t, box, "as-root.sh", "bash", "-c", `echo "$PATH ${GOPATH-none} $1"`, "name", "an argument")
	if want := "-E\n-H\n" + box + " none an argument\n"; !ok || !strings.HasSuffix(said, want) {
		t.Errorf("printed\n%s\nwant\n%s", said, want)
	}
	scripts["id"] = "echo 0"
	if said, ok := script(t, toolbox(t, scripts), "as-root.sh", "bash", "-c", "echo here; exit 3"); ok || said != "here\n" {
		t.Errorf("as root: succeeded: %t, printed %q", ok, said)
	}
	delete(scripts, "sudo")
	scripts["id"] = "echo 1000"
	if said, ok := script(t, toolbox(t, scripts), "as-root.sh", "bash", "-c", "true"); ok || !strings.Contains(said, "run this as root") {
		t.Errorf("without sudo: succeeded: %t, printed %q", ok, said)
	}
}
