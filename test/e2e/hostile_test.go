package e2e

import (
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// destroyWithin bounds the end of a machine: that is this host's own work, which no program prolongs, and a busy host is slow at it.
const destroyWithin = 30 * time.Second

// wantInTime holds a job to its limit plus 2 s, and as long as this host stood still meanwhile, whatever it did to stay.
func wantInTime(t *testing.T, r jobs.Result, wallMS int64, still time.Duration) {
	t.Helper()
	if allowed := float64(wallMS + 2000 + still.Milliseconds()); r.Phases.RunMS > allowed {
		t.Errorf("ran %.0f ms of at most %.0f", r.Phases.RunMS, allowed)
	}
	if r.Phases.DestroyMS > float64(destroyWithin.Milliseconds()) {
		t.Errorf("its machine's end took %.0f ms of at most %s", r.Phases.DestroyMS, destroyWithin)
	}
}

// standstill measures for how long this host lets nobody go on: stop tells.
func standstill(t *testing.T) (stop func() time.Duration) {
	done, still := make(chan struct{}), make(chan time.Duration)
	go func() {
		const every, usual = 10 * time.Millisecond, 50 * time.Millisecond
		var sum time.Duration
		for last := time.Now(); ; {
			select {
			case <-done:
				still <- sum
				return
			case <-time.After(every):
			}
			now := time.Now()
			if late := now.Sub(last) - every; late > usual {
				sum += late
			}
			last = now
		}
	}()
	stop = sync.OnceValue(func() time.Duration { close(done); return <-still })
	t.Cleanup(func() { stop() })
	return stop
}

// Each hostile program gets its own ending, within its limits plus 2 s, and the next job on that worker is unhurt.
func TestHostilePrograms(t *testing.T) {
	c := up(t)
	// What ends by itself has time to, however slow this machine is: time is to end only what says so.
	limits := jobs.Limits{WallMS: 60_000, CPUMS: 60_000}
	brief := func(l *jobs.Limits) { l.WallMS = 4000 }
	root := func(line string) jobs.Spec {
		return jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: line, User: "root"}}, Limits: limits}
	}
	py := func(source string, change func(*jobs.Limits)) jobs.Spec {
		s := python(source)
		s.Limits = limits
		if change != nil {
			change(&s.Limits)
		}
		return s
	}
	for _, tt := range []struct {
		name   string
		spec   jobs.Spec
		ending jobs.Ending
		limit  string
	}{
		// The bombs' main processes end when they are refused.
		{
			"fork bomb", py("import os\nmain = os.getpid()\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        if os.getpid() == main:\n            os._exit(1)\n", nil),
			jobs.PIDsLimit, "pids",
		},
		{ // dash ends when it is refused. What its main process starts stays, so that it is.
			"shell fork bomb", jobs.Spec{Image: "base", Limits: limits, Steps: []jobs.Step{{Shell: "f() { f | f & }; f; while :; do sleep 1000 & done"}}},
			jobs.PIDsLimit, "pids",
		},
		{"memory", py("b = []\nwhile True:\n    b.append(bytearray(1 << 20))\n", nil), jobs.MemoryLimit, "memory"},
		{
			"disk", py("f = open('big', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))\n    f.flush()\n",
				func(l *jobs.Limits) { l.DiskBytes, l.FileBytes = 32<<20, 1<<30 }), jobs.DiskLimit, "disk",
		},
		{
			"file size", py("import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)\nf = open('big', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))\n",
				func(l *jobs.Limits) { l.FileBytes = 8 << 20 }), jobs.FileLimit, "file",
		},
		{"flood", py("while True:\n    print('x' * 4096)\n", func(l *jobs.Limits) { l.OutputBytes = 1 << 20 }), jobs.OutputLimit, "stdout"},
		{"sleep", py("import time\ntime.sleep(1000)\n", brief), jobs.TimeLimit, "wall"},
		{
			"ignores signals", py("import signal, time\nfor s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n    signal.signal(s, signal.SIG_IGN)\nwhile True:\n    time.sleep(1)\n", brief),
			jobs.TimeLimit, "wall",
		},
		{"spin", py("while True:\n    pass\n", func(l *jobs.Limits) { l.CPUMS = 2000 }), jobs.TimeLimit, "cpu"},
		{
			"daemon", py("import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)\ntime.sleep(0.2)\n", nil),
			jobs.Exited, "",
		},
		{"segfault", py("import ctypes\nctypes.string_at(0)\n", nil), jobs.Signaled, ""},
		{"power off", root("echo o > /proc/sysrq-trigger; sleep 100"), jobs.VMExited, ""},
		{"reboot", root("echo b > /proc/sysrq-trigger; sleep 100"), jobs.VMExited, ""},
		{"kernel panic", root("echo c > /proc/sysrq-trigger; sleep 100"), jobs.VMExited, ""},
		{"kill the agent", root("kill -9 1; sleep 0.2; echo alive"), jobs.Exited, ""},
		{"no such program", jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: "/no/such"}}}, jobs.StartFailed, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			still := standstill(t)
			r := runJob(t, c, tt.spec)
			stood := still()
			if r.Ending != tt.ending || r.Limit != tt.limit {
				t.Errorf("ended %s %s (%s), want %s %s; stderr %q", r.Ending, r.Limit, r.Reason, tt.ending, tt.limit, lastStderr(r))
			}
			wantInTime(t, r, tt.spec.StepLimits(jobs.Step{}).WallMS, stood)
			if r.Attempt != 1 {
				t.Errorf("attempt %d: the program's own doing was tried again", r.Attempt)
			}
			next := time.Now()
			wantSuccess(t, runJob(t, c, jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: "exit 0"}}}))
			t.Logf("%s after %.0f ms; the next job took %s", r.Ending, r.Phases.RunMS, time.Since(next).Round(time.Millisecond))
		})
	}
}
