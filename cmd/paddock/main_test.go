package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/test/port"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "exe" { // /proc/self/exe: the jail's stub
		main()
	}
	testscript.Main(m, map[string]func(){"paddock": patient, "impatient": main, "nats-server": natsServer})
}

// patient is the command on a machine that is loaded: that a job still waits is no word of what a test compares.
func patient() {
	patience = time.Hour
	main()
}

// natsServer is a NATS server without a dispatcher, on $PADDOCK_LISTEN.
func natsServer() {
	s, err := bus.Embed(bus.EmbedConfig{Listen: os.Getenv("PADDOCK_LISTEN"), StoreDir: os.Getenv("PADDOCK_STATE_DIR") + "-nats", LazySync: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.URL())
	_, _ = io.Copy(io.Discard, os.Stdin) // until nobody wants it any more
}

// TestScripts drives the command as its users do. testdata/script/README says what the scripts find there, and which commands they have
// besides testscript's own.
func TestScripts(t *testing.T) {
	agent := buildAgent(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			addr, err := freeAddr()
			if err != nil {
				return err
			}
			second, err := freeAddr()
			if err != nil {
				return err
			}
			self, err := exec.LookPath("paddock")
			if err != nil {
				return err
			}
			store := filepath.Join(e.WorkDir, "store")
			if err := makeImages(store, "base", "python"); err != nil {
				return err
			}
			for k, v := range map[string]string{
				"HOME": e.WorkDir, "NL": "\n", "USER": "me", "TERM": "xterm", "ADDR": addr, "ADDR2": second, "PADDOCK": self, "PADDOCK_LISTEN": addr, "PADDOCK_NATS": "nats://" + addr,
				"PADDOCK_STATE_DIR": filepath.Join(e.WorkDir, "state"), "PADDOCK_IMAGE_DIR": store, "PADDOCK_METRICS_LISTEN": "", "PADDOCK_AGENT": agent,
				"PADDOCK_DRIVER": "hostproc", "PADDOCK_INSECURE_NO_ISOLATION": "true", "PADDOCK_READY": "1", "PADDOCK_PREPARED": "0", "PADDOCK_LAZY_SYNC": "true",
			} {
				e.Setenv(k, v)
			}
			p := &processes{byName: map[string]*process{}}
			e.Values[processesKey{}] = p
			e.Defer(p.stop)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": start, "await": await, "signal": signalTo, "send": send, "ends": ends, "exits": exits, "until": until, "json": jsonIs, "jsonenv": jsonEnv,
			"binary": binary, "snapshots": snapshots,
		},
	})
}

// buildAgent builds the agent that there is, whatever bin/ holds.
func buildAgent(t *testing.T) string {
	agent := filepath.Join(t.TempDir(), "paddock-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", agent, "../paddock-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	return agent
}

func freeAddr() (string, error) {
	p, err := port.Free()
	return port.Addr(p), err
}

// makeImages makes images that no machine could boot. The drivers hostproc and inproc boot none.
func makeImages(dir string, names ...string) error {
	s, err := images.Open(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		tmp, err := s.Temp("test-")
		if err != nil {
			return err
		}
		r, err := images.ShippedRecipe(name)
		if err != nil {
			return err
		}
		m := images.Manifest{Recipe: r}
		for i, part := range []*images.Part{&m.Kernel, &m.Initrd, &m.Root, &m.Scratch} {
			f := filepath.Join(tmp, fmt.Sprint(i))
			if err := os.WriteFile(f, fmt.Appendf(nil, "part %d of %s", i, name), 0o600); err != nil {
				return err
			}
			if *part, err = s.Adopt(f); err != nil {
				return err
			}
		}
		if _, err := s.Publish(m); err != nil {
			return err
		}
	}
	return s.Verify(context.Background(), names[0])
}
