// Package arch_test holds the packages to the directions in which they may import each other (docs/design.md, "Packages").
package arch_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/paddockvm/paddock/"

// may says what of this module each package may import. A package that is not here fails the test: say where it stands.
var may = map[string][]string{
	// level 0: the contracts
	"jobs":            {},
	"jobs/schema":     {},
	"vmm":             {},
	"guestagent/wire": {},
	// level 1
	"guestagent":              {"guestagent/wire"},
	"guestagent/client":       {"guestagent/wire"},
	"vmm/cloudhypervisor":     {"vmm", "vmm/checkpoint", "vmm/cloudhypervisor/api", "vmm/hostfile", "vmm/tail"},
	"vmm/cloudhypervisor/api": {},
	"vmm/checkpoint":          {"vmm/hostfile"},
	"vmm/hostfile":            {},
	"vmm/tail":                {},
	"vmm/hostvsock":           {},
	"vmm/qemu":                {"vmm", "vmm/checkpoint", "vmm/hostfile", "vmm/hostvsock", "vmm/tail"},
	"vmm/hostproc":            {"vmm"},
	"vmm/inproc":              {"vmm", "guestagent"},
	"vmm/vmmtest":             {"test/leak", "vmm", "vmm/checkpoint"},
	"vmm/vmmtest/testguest":   {},
	"worker/jail":             {"vmm", "worker/jail/stub"},
	"worker/jail/stub":        {},
	"worker/host":             {},
	"worker/demand":           {},
	"worker/forward":          {},
	"worker/hostnet":          {},
	// level 2
	"images":                         {"jobs", "vmm", "vmm/checkpoint", "guestagent/client", "guestagent/wire"},
	"images/build":                   {"images", "jobs"},
	"worker":                         {"jobs", "vmm", "worker/demand", "worker/forward", "guestagent/client", "guestagent/wire"},
	"dispatcher/match":               {"jobs"},
	"dispatcher/ledger":              {"jobs"},
	"dispatcher/ledger/sqlite":       {"dispatcher/ledger", "dispatcher/ledger/sqlstore", "jobs"},
	"dispatcher/ledger/postgres":     {"dispatcher/ledger", "dispatcher/ledger/sqlstore", "jobs"},
	"dispatcher/ledger/sqlstore":     {"dispatcher/ledger", "jobs"},
	"dispatcher/ledger/ledgertest":   {"dispatcher/ledger", "jobs"},
	"dispatcher/webhook":             {"dispatcher/ledger", "jobs"},
	"dispatcher/webhook/webhooktest": {"dispatcher/ledger", "dispatcher/webhook", "jobs"},
	"dispatcher/api":                 {"jobs"},
	"dispatcher":                     {"dispatcher/ledger", "dispatcher/match", "jobs"},
	// level 3
	"dispatcher/asynqin":  {"jobs"},
	"objects":             {"jobs"},
	"objects/objectstest": {"jobs", "objects"},
	"client":              {"jobs"},
	"bus/access":          {"jobs"},
	"bus":                 {"bus/access", "jobs", "objects"},
	"bus/bustest":         {"bus", "bus/access", "jobs", "test/port"},
	// level 4: where all is put together
	"cmd/paddock":       {"*"},
	"cmd/paddock-agent": {"guestagent"},
	// tests from outside
	"test/harness":   {"*"},
	"test/pgtest":    {"test/port"},
	"test/port":      {},
	"test/bubble":    {},
	"test/leak":      {},
	"test/hostile":   {"jobs"},
	"test/humaneval": {"client", "jobs", "test/harness"},
	"test/kvmhost":   {"*"},
	"test/chaos":     {"client", "jobs", "test/pgtest"},
	"test/chaos/cmd": {"test/chaos", "test/harness"},
	// a program of its own, that starts in a moment
	"test/chaos/program": {},
	// what runs inside the host is small, and the same outside
	"test/kvmhost/steps":  {},
	"test/kvmhost/inside": {"test/kvmhost/steps"},
	"test/kvmhost/cmd":    {"test/kvmhost"},
	"test/kvmhost/inhost": {},
}

// standard are the packages that use nothing but the standard library.
var standard = []string{"jobs", "jobs/schema", "vmm", "guestagent/wire", "worker/demand", "worker/forward", "vmm/tail", "test/port", "test/bubble"}

type listed struct {
	ImportPath string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,GoFiles", module+"...")
	out, err := cmd.Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("%v: %s", err, e.Stderr)
		}
		t.Fatal(err)
	}
	var l []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return l
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			l = append(l, p)
		}
	}
}

func TestImports(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, ok := may[name]
		if !ok {
			t.Errorf("%s has no place in the map of packages", name)
			continue
		}
		seen[name] = true
		for _, imp := range p.Imports {
			own := strings.HasPrefix(imp, module)
			switch in := strings.TrimPrefix(imp, module); {
			case own && !slices.Contains(allowed, in) && !slices.Contains(allowed, "*"):
				t.Errorf("%s imports %s, and may import of this module: %s", name, in, strings.Join(allowed, ", "))
			case !own && slices.Contains(standard, name) && strings.Contains(strings.Split(imp, "/")[0], "."):
				t.Errorf("%s imports %s, and may use the standard library only", name, imp)
			case strings.HasSuffix(path.Base(imp), "test") && own && !strings.Contains(name, "test"):
				t.Errorf("%s imports %s, which is for tests", name, in)
			}
		}
	}
	for name := range may {
		if !seen[name] && name != "dispatcher/ledger/ledgertest" {
			t.Errorf("there is no package %s", name)
		}
	}
}
