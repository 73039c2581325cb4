package chaos_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/chaos"
	"github.com/paddockvm/paddock/test/harness"
)

// TestMain is also the NATS servers that the tests start.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == chaos.NodeArg {
		if err := chaos.Node(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// run is one run, with a seed that PADDOCK_CHAOS_SEED may give.
func run(t *testing.T, cfg chaos.Config) {
	t.Helper()
	if os.Getenv("REQUIRE_CHAOS") == "" {
		t.Skip("NOT RUN: it takes minutes: `make chaos` runs it, with REQUIRE_CHAOS=1")
	}
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Bin = os.Getenv("PADDOCK_CHAOS_BIN"); cfg.Bin == "" {
		cfg.Bin = filepath.Dir(bin)
	}
	cache, err := harness.Cache()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Images = filepath.Join(cache, "images")
	if cfg.Machines > 0 {
		switch err := chaos.CanMachines(cfg.Images); {
		case err != nil && os.Getenv("REQUIRE_QEMU") == "1":
			t.Fatal(err)
		case err != nil:
			t.Logf("NOT RUN: no job in a real machine: %v", err)
			cfg.Machines = 0
		}
	}
	if cfg.Seed, err = strconv.ParseUint(os.Getenv("PADDOCK_CHAOS_SEED"), 10, 64); err != nil {
		cfg.Seed = uint64(time.Now().UnixNano())
	}
	dir, err := os.MkdirTemp("", "pc-") //nolint:usetesting // it stays where the test fails
	if err != nil {
		t.Fatal(err)
	}
	cfg.Dir, cfg.Log = filepath.Join(dir, "run"), t.Output()
	if slices.Contains(cfg.Faults, "clock") { // before anything runs that building it would slow
		cfg.Stepped = filepath.Join(dir, "stepped")
		if err := chaos.BuildStepped(t.Context(), filepath.Join(cache, "stepped-clock"), cfg.Stepped); err != nil {
			t.Fatal(err)
		}
	}
	t.Parallel() // a run waits more than it works
	r, err := chaos.Run(t.Context(), cfg)
	if err != nil {
		t.Fatalf("seed %d, logs in %s: %v", cfg.Seed, cfg.Dir, err)
	}
	t.Log(r)
	if len(r.Wrong) > 0 {
		t.Fatalf("seed %d, logs in %s/log", cfg.Seed, cfg.Dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// The short runs of each class.
const (
	short     = 15 * time.Second
	shortJobs = 300
	machines  = 6 // of the jobs, where real machines run too
)

func TestKill(t *testing.T) {
	run(t, chaos.Config{For: short, Jobs: shortJobs, Faults: []string{"kill"}, Machines: machines, Ledger: "postgres"})
}

func TestPause(t *testing.T) {
	run(t, chaos.Config{For: short, Jobs: shortJobs, Faults: []string{"pause"}, Machines: machines, Ledger: "postgres"})
}

func TestPartition(t *testing.T) {
	run(t, chaos.Config{For: short, Jobs: shortJobs, Faults: []string{"partition"}, Ledger: "postgres"})
}

func TestClock(t *testing.T) {
	run(t, chaos.Config{For: short, Jobs: shortJobs, Faults: []string{"clock"}, Ledger: "postgres"})
}

func TestLatency(t *testing.T) {
	run(t, chaos.Config{For: short, Jobs: shortJobs, Faults: []string{"latency"}})
}

func TestDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root for small file systems")
	}
	run(t, chaos.Config{For: short, Jobs: shortJobs, Faults: []string{"disk"}})
}

func TestRollback(t *testing.T) {
	run(t, chaos.Config{For: short, Jobs: shortJobs, Faults: []string{"rollback"}})
}

func TestAll(t *testing.T) {
	run(t, chaos.Config{For: short + short/2, Jobs: 2 * shortJobs, Faults: chaos.Classes(), AtOnce: 2, Machines: machines, Ledger: "postgres"})
}
