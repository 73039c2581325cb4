package worker_test

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
	"github.com/paddockvm/paddock/vmm/inproc"
)

// lines keeps a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte("\n"))
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// earnest runs a test in a bubble, with a worker and a fleet whose times are those that they have in earnest.
func earnest(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.ttl = 15 * time.Second
		r.cfg.BeatEvery, r.cfg.CancelGrace, r.cfg.GuestSlack = 0, 0, 0
		test(t, r)
	})
}

// outage makes everybody vanish, or come back.
func (r *rig) outage(away bool) {
	r.board.mu.Lock()
	r.board.broken = away
	r.board.mu.Unlock()
	r.set(func() { r.away = away })
}

// runs waits until so many attempts run.
func (r *rig) runs(t *testing.T, n int) {
	t.Helper()
	r.until(t, "attempts run", func() bool {
		if len(r.beats) == 0 {
			return false
		}
		running := 0
		for _, h := range r.beats[len(r.beats)-1].Running {
			if h.Running {
				running++
			}
		}
		return running == n
	})
}

func limited(s jobs.Spec, wall time.Duration, output int64) jobs.Spec {
	s.Limits.WallMS, s.Limits.OutputBytes = wall.Milliseconds(), output
	return s
}

// told gives what a job's viewers got of its output, and holds the events to their order.
func (r *rig) told(t *testing.T, job string) []byte {
	t.Helper()
	return output(t, r.board.of(job))
}

func output(t *testing.T, events []jobs.Event) []byte {
	t.Helper()
	var out []byte
	step, begins := 0, 0 // of which what is printed now, and where in out that begins
	for i, e := range events {
		if e.Seq != int64(i+1) {
			t.Fatalf("event %d has the number %d", i, e.Seq)
		}
		if e.Type == jobs.EventOutput {
			if e.Step != step {
				step, begins = e.Step, len(out)
			}
			if e.Offset != int64(len(out)-begins) {
				t.Fatalf("event %d is of offset %d after %d bytes", e.Seq, e.Offset, len(out)-begins)
			}
			out = append(out, e.Data()...)
		}
	}
	return out
}

// unvisited is a listener to which nobody connects; a bubble's time stands still while one waits in the kernel.
type unvisited struct {
	once   sync.Once
	closed chan struct{}
}

func (u *unvisited) Accept() (net.Conn, error) { <-u.closed; return nil, net.ErrClosed }
func (u *unvisited) Close() error              { u.once.Do(func() { close(u.closed) }); return nil }
func (u *unvisited) Addr() net.Addr            { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// While nobody answers, machines that can only report go on; those that can do more are ended at the lease's end.
func TestOutage(t *testing.T) {
	earnest(t, func(t *testing.T, r *rig) {
		log := &lines{}
		r.log = log
		r.cfg.Ports = func() (net.Listener, error) { return &unvisited{closed: make(chan struct{})}, nil }
		r.run(t)
		quiet := r.put(limited(steps([]string{"echo", "before"}, []string{"sleep", "40"}, []string{"echo", "after"}), time.Minute, 0))
		short := r.put(steps([]string{"sleep", "5"}))
		ports := limited(steps([]string{"sleep", "50"}), time.Minute, 0)
		ports.Network.Ports = []int{80}
		acts := r.put(ports)
		once := limited(steps([]string{"sleep", "50"}, []string{"echo", "once"}), time.Minute, 0)
		once.Network.Ports, once.InfraRetries = []int{80}, new(int)
		last := r.put(once)
		r.runs(t, 4)
		r.outage(true)
		before, began := log.count(), time.Now()
		time.Sleep(14 * time.Second)
		asked := 0
		r.set(func() { asked = len(r.requests) })
		time.Sleep(16 * time.Second)
		if n := log.count() - before; n > 8 {
			t.Errorf("%d lines of log in 30 s:\n%s", n, log)
		}
		r.set(func() {
			if n := len(r.requests) - asked; n != 0 {
				t.Errorf("%d requests for leases while nobody answers", n)
			}
		})
		r.outage(false)
		for _, l := range []jobs.Lease{quiet, short, last} {
			rep := r.report(t, l.Job)
			if !rep.Result.Success() || rep.Attempt != 1 || rep.Events != int64(len(r.board.of(l.Job))) {
				t.Errorf("ended %s: %s after %d of %d events", rep.Result.Ending, rep.Result.Reason, len(r.board.of(l.Job)), rep.Events)
			}
		}
		if got := string(r.told(t, quiet.Job)); got != "before\nafter\n" {
			t.Errorf("told %q", got)
		}
		if e := r.board.of(quiet.Job); e[len(e)-1].Time.Sub(began) < 35*time.Second {
			t.Error("the job did not run through the outage")
		}
		r.until(t, "nothing is left", func() bool { return len(r.beats[len(r.beats)-1].Running) == 0 })
		r.set(func() {
			for _, rep := range append(r.reports, r.fenced...) {
				if rep.Job == acts.Job {
					t.Errorf("a machine with a port reported %s", rep.Result.Ending)
				}
			}
		})
		if n := len(r.board.of(acts.Job)); n > 2 {
			t.Errorf("%d events of a machine with a port, want none after the outage", n)
		}
		r.empty(t)
	})
}

// empty shows that nothing waits on disk.
func (r *rig) empty(t *testing.T) {
	t.Helper()
	synctest.Wait()
	for _, dir := range []string{"spool", "out"} {
		left, err := os.ReadDir(filepath.Join(r.cfg.Dir, dir))
		if err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v %v", dir, left, err)
		}
	}
}

// bubbled gives the stacks of the goroutines in the test's bubble. runtime.NumGoroutine counts the runtime's own as well, while they run finalizers.
func bubbled() (in [][]byte) {
	all := make([]byte, 1<<20)
	for g := range bytes.SplitSeq(all[:runtime.Stack(all, true)], []byte("\n\n")) {
		if state, _, _ := bytes.Cut(g, []byte("\n")); bytes.Contains(state, []byte("synctest bubble")) {
			in = append(in, g)
		}
	}
	return in
}

// An outage of hours costs nothing that grows.
func TestOutageOfHours(t *testing.T) {
	earnest(t, func(t *testing.T, r *rig) {
		log := &lines{}
		r.log = log
		r.run(t)
		var put []jobs.Lease
		for range 3 {
			put = append(put, r.put(steps([]string{"spew", "100000"}, []string{"sleep", "5"}, []string{"echo", "done"})))
		}
		r.runs(t, 3)
		r.outage(true)
		time.Sleep(30 * time.Second)
		tries, said, goroutines := r.board.count(), log.count(), bubbled()
		time.Sleep(6 * time.Hour)
		if n := r.board.count() - tries; n != 0 {
			t.Errorf("%d tries to publish what may be another's", n)
		}
		if n := log.count() - said; n != 0 {
			t.Errorf("%d lines of log:\n%s", n, log)
		}
		if n := bubbled(); len(n) > len(goroutines) {
			t.Errorf("%d goroutines, and %d six hours ago:\n%s", len(n), len(goroutines), bytes.Join(n, []byte("\n\n")))
		}
		files, err := os.ReadDir(filepath.Join(r.cfg.Dir, "spool"))
		if err != nil || len(files) != 6 {
			t.Errorf("spooled: %v %v", files, err)
		}
		r.outage(false)
		for _, l := range put {
			if rep := r.report(t, l.Job); !rep.Result.Success() || len(r.told(t, l.Job)) != 100_005 {
				t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
			}
		}
		again := r.put(steps([]string{"true"}))
		if rep := r.report(t, again.Job); !rep.Result.Success() {
			t.Errorf("after it: %s", rep.Result.Ending)
		}
		r.empty(t)
	})
}

// Attempts that were given to others during the outage end, running or not, and nothing of them is told.
func TestOutageEndsWithAttemptsGivenAway(t *testing.T) {
	for _, how := range []string{"dropped", "another session"} {
		t.Run(how, func(t *testing.T) {
			earnest(t, func(t *testing.T, r *rig) {
				r.run(t)
				running := r.put(limited(steps([]string{"sleep", "3000"}), time.Hour, 0))
				ended := r.put(steps([]string{"sleep", "5"}, []string{"echo", "late"}))
				r.runs(t, 2)
				r.outage(true)
				time.Sleep(time.Minute)
				r.set(func() {
					for _, l := range []jobs.Lease{running, ended} {
						r.holds[l.Job] = jobs.Held{Job: l.Job, Attempt: 2, Epoch: 100}
						r.drop[l.Job] = how == "dropped"
					}
					if how != "dropped" {
						r.session += 10
					}
				})
				r.outage(false)
				time.Sleep(10 * time.Second)
				r.set(func() {
					if n := len(r.beats[len(r.beats)-1].Running); n != 0 {
						t.Errorf("%d attempts are still held", n)
					}
					if len(r.reports) != 0 {
						t.Errorf("reported %+v", r.reports)
					}
				})
				if got := r.told(t, ended.Job); len(got) != 0 {
					t.Errorf("told %q of an attempt that was another's", got)
				}
				r.empty(t)
			})
		})
	}
}

// What a worker could not tell before its end is told by its next life, in the old one's session; and not if that is over.
func TestOutageOutlivesTheWorker(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(r *rig, l jobs.Lease)
		told   bool
	}{
		{"still its own", func(*rig, jobs.Lease) {}, true},
		{"given away", func(r *rig, l jobs.Lease) { r.session++ }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			earnest(t, func(t *testing.T, r *rig) {
				r.run(t)
				l := r.put(steps([]string{"sleep", "5"}, []string{"echo", "kept"}))
				r.runs(t, 1)
				r.outage(true)
				time.Sleep(time.Minute)
				if err := r.stop(); err != nil { // it leaves though nobody answers: all is on disk
					t.Fatal(err)
				}
				r.set(func() { tt.change(r, l) })
				r.run(t)
				time.Sleep(time.Minute)
				before := len(r.beats)
				r.outage(false)
				time.Sleep(10 * time.Second)
				r.set(func() {
					if b := r.beats[before]; b.Session == 0 || len(b.Running) != 1 || b.Running[0].Job != l.Job {
						t.Errorf("the first heartbeat: %+v", b)
					}
				})
				want := ""
				if tt.told {
					want = "kept\n"
					if rep := r.report(t, l.Job); !rep.Result.Success() || rep.Events != int64(len(r.board.of(l.Job))) {
						t.Errorf("reported %+v", rep)
					}
				}
				if got := string(r.told(t, l.Job)); got != want {
					t.Errorf("told %q, want %q", got, want)
				}
				r.empty(t)
			})
		})
	}
}

// chatty is a rig whose guests print numbered lines.
func chatty(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	earnest(t, func(t *testing.T, r *rig) {
		r.cfg.Driver = inproc.New(talk)
		test(t, r)
	})
}

// intoOutage has jobs leased, of which nothing is told, and then everybody vanish.
func (r *rig) intoOutage(t *testing.T, specs ...jobs.Spec) (put []jobs.Lease) {
	t.Helper()
	r.outage(true)
	r.set(func() { r.away = false })
	for _, s := range specs {
		put = append(put, r.put(s))
	}
	r.until(t, "they are leased", func() bool { return len(r.holds) == len(specs) })
	r.set(func() { r.away = true })
	return put
}

const fifty = 50 << 20

// A program that prints 50 MB through an outage does not wait for it, and every byte of it is told, in order.
func TestChattyJobThroughAnOutage(t *testing.T) {
	chatty(t, func(t *testing.T, r *rig) {
		r.run(t)
		l := r.intoOutage(t, limited(steps([]string{"count", "52428800"}), time.Minute, fifty))[0]
		time.Sleep(2 * time.Minute)
		r.outage(false)
		time.Sleep(time.Minute)
		rep := r.report(t, l.Job)
		if !rep.Result.Success() {
			t.Fatalf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
		}
		if got := r.told(t, l.Job); !bytes.Equal(got, numbered(fifty)) {
			t.Errorf("%d bytes were told, and not all as they were printed", len(got))
		}
		if took := time.Duration(rep.Result.Phases.RunMS) * time.Millisecond; took > 15*time.Second {
			t.Errorf("the program ran for %v: it waited", took)
		}
		r.empty(t)
	})
}

// A program that we hold up, because even the disk is full, and that then passes its wall limit has not passed its own.
func TestOutputWithoutRoom(t *testing.T) {
	for _, tt := range []struct {
		name   string
		wall   time.Duration
		ending jobs.Ending
	}{
		{"it has the time to wait", 10 * time.Minute, jobs.Exited},
		{"its wall limit passes meanwhile", 20 * time.Second, jobs.HostResources},
	} {
		t.Run(tt.name, func(t *testing.T) {
			chatty(t, func(t *testing.T, r *rig) {
				r.cfg.SpillEach = 8 << 20
				r.run(t)
				l := r.intoOutage(t, limited(steps([]string{"count", "52428800"}), tt.wall, fifty))[0]
				time.Sleep(2 * time.Minute)
				if waits := r.spilled(t); waits > 8<<20 || waits < 4<<20 {
					t.Errorf("%d bytes wait on disk", waits)
				}
				r.outage(false)
				time.Sleep(time.Minute)
				rep := r.report(t, l.Job)
				if rep.Result.Ending != tt.ending {
					t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
				}
				got := r.told(t, l.Job)
				if want := numbered(fifty); !bytes.Equal(got, want[:len(got)]) || tt.ending == jobs.Exited && len(got) != len(want) {
					t.Errorf("%d bytes were told, and not all as they were printed", len(got))
				}
				r.empty(t)
			})
		})
	}
}

// A program's own time limit is its own, though it prints through an outage.
func TestTimeLimitInAnOutage(t *testing.T) {
	chatty(t, func(t *testing.T, r *rig) {
		r.run(t)
		l := r.intoOutage(t, limited(steps([]string{"count", "52428800"}), 5*time.Second, fifty))[0]
		time.Sleep(time.Minute)
		r.outage(false)
		time.Sleep(10 * time.Second)
		if rep := r.report(t, l.Job); rep.Result.Ending != jobs.TimeLimit {
			t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
		}
	})
}

// All attempts share the disk.
func TestSpillOfAll(t *testing.T) {
	chatty(t, func(t *testing.T, r *rig) {
		r.cfg.SpillAll = 24 << 20
		r.run(t)
		s := limited(steps([]string{"count", "20000000"}), time.Hour, fifty)
		put := r.intoOutage(t, s, s, s)
		time.Sleep(2 * time.Minute)
		if waits := r.spilled(t); waits > 24<<20 || waits < 16<<20 {
			t.Errorf("%d bytes wait on disk", waits)
		}
		r.outage(false)
		time.Sleep(time.Minute)
		for _, l := range put {
			if rep := r.report(t, l.Job); !rep.Result.Success() || !bytes.Equal(r.told(t, l.Job), numbered(20_000_000)) {
				t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
			}
		}
		r.empty(t)
	})
}

// A job that is canceled while its output finds no room ends at once.
func TestCancelWithoutRoom(t *testing.T) {
	chatty(t, func(t *testing.T, r *rig) {
		r.cfg.SpillEach = 1
		r.run(t)
		l := r.put(limited(steps([]string{"count", "52428800"}), time.Hour, fifty))
		r.until(t, "it is leased", func() bool { return len(r.holds) > 0 })
		r.board.mu.Lock()
		r.board.broken = true
		r.board.mu.Unlock()
		time.Sleep(time.Minute)
		r.set(func() { r.cancel[l.Job] = true })
		time.Sleep(10 * time.Second)
		r.board.mu.Lock()
		r.board.broken = false
		r.board.mu.Unlock()
		if rep := r.report(t, l.Job); rep.Result.Ending != jobs.Canceled {
			t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
		}
	})
}

// spilled is how many bytes wait on disk, by the descriptors of this process: the files have no names.
func (r *rig) spilled(t *testing.T) (n int64) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		name := filepath.Join("/proc/self/fd", fd.Name())
		to, err := os.Readlink(name)
		if err != nil || !strings.HasPrefix(to, filepath.Join(r.cfg.Dir, "out")) {
			continue
		}
		if st, err := os.Stat(name); err == nil {
			n += st.Size()
		}
	}
	return n
}

// A disk that is full holds the program up, and loses nothing: neither what waits nor the result, which has no place in the spool either.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root to mount a small disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("paddock-test", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error("unmount:", err)
		}
	})
	chatty(t, func(t *testing.T, r *rig) {
		log := &lines{}
		r.log, r.cfg.Dir = log, dir
		r.run(t)
		leases := r.intoOutage(t, limited(steps([]string{"count", "52428800"}), time.Hour, fifty), limited(steps([]string{"count", "4000000"}), time.Hour, fifty))
		time.Sleep(10 * time.Minute)
		if n := log.count(); n > 20 {
			t.Errorf("%d lines of log in ten minutes:\n%s", n, log)
		}
		r.outage(false)
		time.Sleep(time.Minute)
		for l, n := range map[string]int{leases[0].Job: fifty, leases[1].Job: 4_000_000} {
			if rep := r.report(t, l); !rep.Result.Success() || !bytes.Equal(r.told(t, l), numbered(n)) {
				t.Errorf("ended %s: %s", rep.Result.Ending, rep.Result.Reason)
			}
		}
		r.empty(t)
	})
}

// What a program prints a byte at a time, on both streams in turn, is an event each: those, too, go to the broker no faster than may be.
func TestOutputOfManyEvents(t *testing.T) {
	earnest(t, func(t *testing.T, r *rig) {
		const n = 60_000
		r.cfg.Driver = inproc.New(flicker)
		r.run(t)
		l := r.put(limited(steps([]string{"flicker", strconv.Itoa(n)}), time.Minute, 0))
		if res := r.report(t, l.Job).Result; !res.Success() {
			t.Fatalf("ended %s: %s", res.Ending, res.Reason)
		}
		var first, last time.Time
		events := 0
		for _, e := range r.board.of(l.Job) {
			if e.Type != jobs.EventOutput {
				continue
			}
			if events++; first.IsZero() {
				first = e.Time
			}
			last = e.Time
		}
		// 16 MiB at once and 4 MiB a second, of which each event takes half a kibibyte.
		if took, at := last.Sub(first), time.Duration((events-(16<<11))*int(time.Second)/(4<<11)); took < at-time.Second {
			t.Errorf("%d events in %v, and no sooner than %v", events, took, at)
		}
		if events < n/2 {
			t.Errorf("%d events of %d bytes: they were joined", events, n)
		}
	})
}
