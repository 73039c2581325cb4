package cloudhypervisor_test

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

func TestRealCheckpoint(t *testing.T) {
	l := newLab(t, vmm.Direct{}, nil)
	vmmtest.RunCheckpoints(t, vmmtest.CheckpointFixture{Fixture: l.Fixture})
}

// TestFakeCheckpoint holds the fake against what the real one is held against.
func TestFakeCheckpoint(t *testing.T) {
	for _, version := range []string{"v53.0", "v54.0-3-g0123456"} {
		t.Run(version, func(t *testing.T) {
			_, d := newFakes(t, version)
			f := vmmtest.Fixture{Driver: d, Boot: fakeBoot(t)}
			f.Template = vmmtest.Build(t, d, f.Boot, talk{})
			vmmtest.RunCheckpoints(t, vmmtest.CheckpointFixture{Fixture: f})
		})
	}
}

// checkpoints is a machine of a fake, and what it is compared with.
type checkpoints struct {
	*fakeLauncher
	vmm.Machine
	base vmm.Template
}

// newCheckpoints makes a machine that is ended with the test, of a driver that waits for a VMM no longer than step.
func newCheckpoints(t *testing.T, version string, step time.Duration) *checkpoints {
	l, slow := newFakes(t, version)
	boot := fakeBoot(t)
	boot.MaxVCPUs = 2
	f := vmmtest.Fixture{Boot: boot, Template: vmmtest.Build(t, slow, boot, talk{})}
	var err error
	f.Driver, err = cloudhypervisor.New(cloudhypervisor.Config{
		Binary: "/bin/true", RunDir: t.TempDir(), Launcher: l, StepTimeout: step, ProbeTimeout: time.Minute,
	})
	must(t, err)
	c := &checkpoints{l, f.Machine(t), f.Template}
	t.Cleanup(func() { l.next("", noMoreWords, nil) })
	return c
}

func (c *checkpoints) take(t *testing.T, ctx context.Context) error {
	_, err := c.Machine.(vmm.Checkpointer).Checkpoint(ctx, t.TempDir(), c.base)
	return err
}

// answers wants the machine to run, and no more left in its directory than was there.
func (c *checkpoints) answers(t *testing.T) {
	t.Helper()
	if _, err := (vmmtest.TestGuest{}).Ask(within(t), c.Machine, "get"); err != nil {
		t.Errorf("the machine does not run on: %v", err)
	}
	entries, err := os.ReadDir(c.dir())
	must(t, err)
	for _, e := range entries {
		if !strings.Contains("api console vsock", e.Name()) {
			t.Errorf("%s is left in the machine's directory", e.Name())
		}
	}
}

func (c *checkpoints) dir() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	path, _ := c.procs[c.ID()].vm.own("/proc/self/fd/3/.")
	return path
}

// TestCheckpointFaults has everything go wrong at every request: the machine runs on, or is over.
func TestCheckpointFaults(t *testing.T) {
	for _, path := range []string{"vm.info", "vm.pause", "vm.snapshot", "vm.resume"} {
		for _, f := range []fault{killBefore, killAfter, refuse, silent, garbage, hangUp, endless, badEvents, halfway} {
			t.Run(path+"/"+string(f), func(t *testing.T) { checkpointFault(t, path, f) })
		}
	}
}

func checkpointFault(t *testing.T, path string, f fault) {
	percent := debug.SetGCPercent(-1) // which would close what is forgotten
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	vmmtest.NoLeaks(t)
	step := time.Minute // the others are noticed by what they do
	if f == silent {
		step = 2 * time.Second
	}
	c := newCheckpoints(t, "v53.0", step)
	c.next(path, f, nil)
	err := c.take(t, within(t))
	t.Log(err)
	c.mu.Lock()
	hits := c.hits
	c.mu.Unlock()
	if hits == 0 {
		t.Error("the fault was never met")
	}
	helped := path == "vm.resume" && f != killBefore // it is told again, and that is all
	if err == nil && !helped && f != killAfter && f != badEvents {
		t.Error("nobody noticed")
	}
	if f == refuse && !helped && !strings.Contains(err.Error(), "sabotage") {
		t.Errorf("error does not say what the VMM said: %v", err)
	}
	if f == killBefore || f == killAfter {
		if exit := exit(t, c.Machine); exit.Err == nil {
			t.Errorf("exit: %+v", exit)
		}
		return
	}
	c.next("", noMoreWords, nil)
	c.answers(t)
	must(t, c.take(t, within(t)))
	c.answers(t)
}

// TestCheckpointBreaksDown: a machine that cannot be let run on is over, and says why.
func TestCheckpointBreaksDown(t *testing.T) {
	vmmtest.NoLeaks(t)
	c := newCheckpoints(t, "v53.0", 10*time.Second)
	c.next("vm.resume", refuseAll, nil)
	if err := c.take(t, within(t)); err == nil || !strings.Contains(err.Error(), "run on") {
		t.Errorf("err = %v", err)
	}
	if exit := exit(t, c.Machine); exit.Guest || exit.Err == nil || !strings.Contains(exit.Err.Error(), "sabotage") {
		t.Errorf("exit: %+v", exit)
	}
}

// TestCheckpointGivenUp at each request: the machine runs on.
func TestCheckpointGivenUp(t *testing.T) {
	for _, path := range []string{"vm.info", "vm.pause", "vm.snapshot"} {
		for _, f := range []fault{silent, unheard} {
			t.Run(path+"/"+string(f), func(t *testing.T) {
				vmmtest.NoLeaks(t)
				c := newCheckpoints(t, "v53.0", 30*time.Second)
				ctx, cancel := context.WithCancel(within(t))
				defer cancel()
				c.next(path, f, cancel)
				if err := c.take(t, ctx); !errors.Is(err, context.Canceled) {
					t.Errorf("err = %v", err)
				}
				c.answers(t)
				must(t, c.take(t, within(t)))
			})
		}
	}
}

// TestPauseGivenUp: the machine runs on, unless it was paused before.
func TestPauseGivenUp(t *testing.T) {
	for _, f := range []fault{silent, unheard, halfway, hangUp} {
		t.Run(string(f), func(t *testing.T) {
			vmmtest.NoLeaks(t)
			c := newCheckpoints(t, "v53.0", 30*time.Second)
			ctx, cancel := context.WithCancel(within(t))
			defer cancel()
			onHit := func() {}
			if f == silent || f == unheard {
				onHit = cancel
			}
			c.next("vm.pause", f, onHit)
			if err := c.Pause(ctx); err == nil || ctx.Err() != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("err = %v", err)
			}
			c.answers(t)
			must(t, c.Pause(within(t)))
			ctx, cancel = context.WithCancel(within(t))
			defer cancel()
			c.next("vm.info", silent, cancel)
			if err := c.Pause(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("again: %v", err)
			}
			vm := c.procs[c.ID()].vm
			vm.mu.Lock()
			defer vm.mu.Unlock()
			if vm.state != "Paused" {
				t.Errorf("it was paused, and is %s", vm.state)
			}
		})
	}
}

// TestCheckpointUnsupported names what cannot be kept.
func TestCheckpointUnsupported(t *testing.T) {
	c := newCheckpoints(t, "v53.0", 10*time.Second)
	r := c.Machine.(vmm.Resizer)
	must(t, r.Resize(within(t), 2, c.base.Boot.MemoryMiB))
	if err := c.take(t, within(t)); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("of a machine that has grown: %v", err)
	}
	must(t, r.Resize(within(t), 1, c.base.Boot.MemoryMiB))
	must(t, c.take(t, within(t)))
	c.answers(t)
	c.next("vm.resize", hangUp, func() { c.hits = 0 }) // each time
	if err := r.Resize(within(t), 2, c.base.Boot.MemoryMiB); err == nil {
		t.Error("nobody noticed that there was no answer")
	}
	if err := c.take(t, within(t)); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("of a machine that may have grown: %v", err)
	}
	for _, version := range []string{"v51.0", "v52.0"} {
		if err := newCheckpoints(t, version, 10*time.Second).take(t, within(t)); !errors.Is(err, vmm.ErrUnsupported) || !strings.Contains(err.Error(), version) {
			t.Errorf("with %s: %v", version, err)
		}
	}
}

// TestCheckpointPause: who pauses the machine meanwhile finds it paused.
func TestCheckpointPause(t *testing.T) {
	c := newCheckpoints(t, "v53.0", 10*time.Second)
	paused := make(chan error, 1)
	c.next("vm.snapshot", badEvents, func() {
		go func() { paused <- c.Pause(within(t)) }()
		time.Sleep(10 * time.Millisecond) // it would come before the end
	})
	must(t, c.take(t, within(t)))
	must(t, <-paused)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (vmmtest.TestGuest{}).Ask(ctx, c.Machine, "get"); err == nil {
		t.Error("it runs")
	}
	must(t, c.Resume(within(t)))
	c.answers(t)
}

// TestHostileCheckpoint: what a VMM leaves that a guest has taken over is no checkpoint, and leads nobody astray.
func TestHostileCheckpoint(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"half a state":        func(dir string) error { return os.Truncate(dir+"/state.json", 100) },
		"no state":            func(dir string) error { return os.Remove(dir + "/state.json") },
		"a state without end": func(dir string) error { return os.Truncate(dir+"/state.json", 1<<40) },
		"a link": func(dir string) error {
			return errors.Join(os.Remove(dir+"/state.json"), os.Symlink("/etc/passwd", dir+"/state.json"))
		},
		"a pipe": func(dir string) error {
			return errors.Join(os.Remove(dir+"/state.json"), unix.Mkfifo(dir+"/state.json", 0o666))
		},
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.NoLeaks(t)
			c := newCheckpoints(t, "v53.0", 30*time.Second)
			c.spoil(spoil)
			err := c.take(t, within(t))
			t.Log(err)
			if err == nil {
				t.Error("it was taken")
			}
			c.spoil(nil)
			c.answers(t)
			must(t, c.take(t, within(t)))
			must(t, os.MkdirAll(c.dir()+"/state.json/in the way", 0o777))
			if err := c.take(t, within(t)); err == nil {
				t.Error("it was taken with a directory in the way")
			}
			must(t, os.RemoveAll(c.dir()+"/state.json"))
			c.answers(t)
		})
	}
	c := newCheckpoints(t, "v53.0", 30*time.Second)
	c.spoil(func(dir string) error { return os.WriteFile(dir+"/config.json", []byte("lies"), 0) })
	dir := t.TempDir()
	_, err := c.Machine.(vmm.Checkpointer).Checkpoint(within(t), dir, c.base)
	must(t, err)
	if b, err := os.ReadFile(dir + "/config.json"); err != nil || !strings.Contains(string(b), "/proc/self/fd/6/memory") {
		t.Errorf("the configuration is %s, %v", b, err)
	}
}
