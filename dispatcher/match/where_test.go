package match_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

const hold = 200 * time.Millisecond

func holdingUp() match.Config {
	return match.Config{WarmWait: func(image string) time.Duration {
		if image == "cheap" {
			return 0
		}
		return hold
	}}
}

// TestWaitForWarm: an item waits for a worker that is warm and busy, for so long and no longer, and not where nobody could come.
func TestWaitForWarm(t *testing.T) {
	busy := warm(match.Worker{Name: "busy", Capacity: room}, "python", 1)
	python := match.Item{ID: "1", Image: "python", Since: now}
	for _, tt := range []struct {
		name   string
		cfg    match.Config
		item   match.Item
		asks   match.Worker
		others []match.Worker
		after  time.Duration
		want   bool
	}{
		{"one that is busy is warm", holdingUp(), python, idle("a", 1), []match.Worker{busy}, 0, false},
		{"for a while only", holdingUp(), python, idle("a", 1), []match.Worker{busy}, hold, true},
		{"turned off", match.Config{}, python, idle("a", 1), []match.Worker{busy}, 0, true},
		{"an image of which machines are made at once", holdingUp(), match.Item{ID: "1", Image: "cheap", Since: now}, idle("a", 1), []match.Worker{warm(busy, "cheap", 1)}, 0, true},
		{"the one that asks is warm", holdingUp(), python, warm(idle("a", 1), "python", 1), []match.Worker{busy}, 0, true},
		{"nobody is warm", holdingUp(), python, idle("a", 1), []match.Worker{{Name: "busy", Capacity: room}}, 0, true},
		{"warm for another image", holdingUp(), python, idle("a", 1), []match.Worker{warm(busy, "base", 1)}, 0, true},
		{"of another pool", holdingUp(), python, idle("a", 1), []match.Worker{{Name: "b", Pool: "gpu", Capacity: room, Warm: map[string]int{"python": 1}}}, 0, true},
		{"too small", holdingUp(), python, idle("a", 1), []match.Worker{{Name: "b", Warm: map[string]int{"python": 1}}}, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := match.New(tt.cfg)
			q.Push(tt.item)
			workers := []match.Worker{tt.asks}
			out, next := q.Match(now.Add(tt.after), workers, fleet(workers, tt.others...))
			if got := len(out) == 1; got != tt.want {
				t.Errorf("matched: %v, want %v", got, tt.want)
			}
			if until := now.Add(hold); !tt.want && !next.Equal(until) {
				t.Errorf("next is %v, want %v", next, until)
			}
		})
	}
}

// TestWaitForTemplate: an item waits for a busy worker that has the template rather than have another build it, for so long and no longer, and
// not where nobody could come.
func TestWaitForTemplate(t *testing.T) {
	const most = 10 * hold
	python := match.Item{ID: "1", Image: "python", Since: now}
	hurried, internet := python, python
	hurried.Hurry, internet.Network = true, "internet"
	kept := match.Item{ID: "1", Image: jobs.SnapshotImage("a", "x"), Since: now}
	avoids := python
	avoids.Avoid, avoids.AvoidUntil = []string{"busy"}, now.Add(time.Hour)
	busy := match.Worker{Name: "busy", Capacity: room, Networks: []string{"internet"}}
	has := holding(busy, "python", own)
	builds := holding(card("a"), "python")
	changed := func(change func(w *match.Worker)) []match.Worker {
		w := has
		change(&w)
		return []match.Worker{w}
	}
	for _, tt := range []struct {
		name   string
		item   match.Item
		asks   match.Worker
		others []match.Worker
		until  time.Duration // 0: it goes at once
	}{
		{"one that is busy has it", python, builds, []match.Worker{has}, most},
		{"one that is busy is warm too", python, builds, []match.Worker{warm(has, "python", 1)}, most},
		{"who does not say is waited for no longer than a warm one is", python, builds, []match.Worker{warm(busy, "python", 1)}, hold},
		{"who does not say is not waited for", python, builds, []match.Worker{busy}, 0},
		{"the one that asks does not say", python, idle("a", 1), []match.Worker{has}, 0},
		{"the one that asks has it, and waits for a warm one as always", python, holding(idle("a", 1), "python", own), []match.Worker{warm(has, "python", 1)}, hold},
		{"the one that asks has it", python, holding(idle("a", 1), "python", own), []match.Worker{has}, 0},
		{"in a hurry", hurried, builds, []match.Worker{warm(has, "python", 1)}, 0},
		{"of another shape", internet, builds, []match.Worker{has}, 0},
		{"of another image", python, builds, []match.Worker{holding(busy, "base", own)}, 0},
		{"nobody has it", python, builds, []match.Worker{holding(busy, "python")}, 0},
		{"the one that has it has left", python, builds, nil, 0},
		{"it takes no more", python, builds, changed(func(w *match.Worker) { w.Draining = true }), 0},
		{"it is of another pool", python, builds, changed(func(w *match.Worker) { w.Pool = "gpu" }), 0},
		{"it is too small", python, builds, changed(func(w *match.Worker) { w.Capacity = jobs.Resources{} }), 0},
		{"it has failed the job", avoids, builds, []match.Worker{has}, 0},
		{"of a snapshot, which is one", kept, builds, []match.Worker{has}, 0},
		{"of a snapshot, of which one that is busy is warm", kept, builds, []match.Worker{warm(has, kept.Image, 1)}, hold},
		{"of a snapshot, of which the one that asks is warm", kept, warm(builds, kept.Image, 1), []match.Worker{warm(has, kept.Image, 1)}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := holdingUp()
			cfg.TemplateWait = most
			q := match.New(cfg)
			q.Push(tt.item)
			for at := now; ; {
				workers := []match.Worker{tt.asks}
				out, next := q.Match(at, workers, fleet(workers, tt.others...))
				if len(out) == 1 {
					want(t, "it went after", tt.until, at.Sub(now))
					return
				}
				if !next.After(at) || next.After(now.Add(time.Minute)) {
					t.Fatalf("after %v it waits until %v", at.Sub(now), next)
				}
				at = next
			}
		})
	}
}

// TestWaitForTemplateHoldsNobodyUp: others go meanwhile, what comes to a line that has waited does not wait again, and a wait ends when nobody
// has the template any more.
func TestWaitForTemplateHoldsNobodyUp(t *testing.T) {
	q := match.New(match.Config{TemplateWait: hold})
	many(q, "a", 3, match.Item{Image: "python", Since: now})
	many(q, "b", 1, match.Item{Image: "base", Since: now})
	busy := holding(match.Worker{Name: "busy", Capacity: room}, "python", own)
	at := func(d time.Duration, slots int, others ...match.Worker) map[string]int {
		workers := []match.Worker{holding(idle("w", slots), "base", own)}
		out, _ := q.Match(now.Add(d), workers, fleet(workers, others...))
		return of(ids(out))
	}
	want(t, "at once", map[string]int{"b": 1}, at(0, 9, busy))
	want(t, "a moment before", map[string]int{}, at(hold-1, 9, busy))
	want(t, "after a while", map[string]int{"a": 2}, at(hold, 2, busy))
	many(q, "a", 2, match.Item{Image: "python", Since: now.Add(hold)})
	want(t, "what came to one that had waited", map[string]int{"a": 3}, at(hold, 9, busy))
	many(q, "a", 1, match.Item{Image: "python", Since: now.Add(2 * hold)})
	want(t, "what came when there were none", map[string]int{}, at(2*hold, 9, busy))
	want(t, "when the one that has it has left", map[string]int{"a": 1}, at(2*hold+1, 9))
}

// TestWaitForWarmHoldsNobodyUp: others go meanwhile; a burst goes to cold workers together and not one by one; and what comes to a line
// that has waited does not wait again.
func TestWaitForWarmHoldsNobodyUp(t *testing.T) {
	q := match.New(holdingUp())
	many(q, "a", 50, match.Item{Image: "python", Since: now})
	q.Push(match.Item{ID: "other", Tenant: "a", Image: "cheap", Since: now})
	at := func(d time.Duration, slots int) map[string]int {
		workers := []match.Worker{idle("w", slots)}
		out, _ := q.Match(now.Add(d), workers, fleet(workers, warm(match.Worker{Name: "busy", Capacity: room}, "python", 1)))
		return of(ids(out))
	}
	want(t, "at once", map[string]int{"other": 1}, at(0, 20))
	want(t, "a moment before", map[string]int{}, at(hold-1, 20))
	want(t, "after a while", map[string]int{"a": 20}, at(hold, 20))
	many(q, "c", 1, match.Item{Image: "python", Since: now.Add(hold)})
	q.Push(match.Item{ID: "a99", Tenant: "a", Priority: 9, Image: "python", Since: now.Add(hold)})
	want(t, "what came meanwhile", map[string]int{"a": 31}, at(hold, 90))
	want(t, "another's later", map[string]int{"c": 1}, at(2*hold, 90))
}

// TestReservation: a stream of small jobs does not keep a large one from ever running.
func TestReservation(t *testing.T) {
	for name, cfg := range map[string]match.Config{"reserved": {}, "never": {ReserveAfter: -1}} {
		t.Run(name, func(t *testing.T) {
			q := match.New(cfg)
			w := small("w", 0, 8, 8192)
			ends := map[int][]string{}
			started := 0
			for s := 0; s < 300 && started == 0; s++ { // a small job comes each second and runs 10 s
				for _, id := range ends[s] {
					q.Release(id)
					w.Free.VCPUs++
				}
				at := now.Add(time.Duration(s) * time.Second)
				if s == 20 {
					q.Push(match.Item{ID: "large", Tenant: "big", Since: at, Resources: jobs.Resources{VCPUs: 8}})
				}
				q.Push(match.Item{ID: fmt.Sprint("s", s), Tenant: "small", Since: at})
				w.Slots, w.Free.MemoryMiB = w.Free.VCPUs, 8192
				workers := []match.Worker{w}
				out, _ := q.Match(at, workers, nil)
				for _, a := range out {
					if a.ID == "large" {
						started = s
					}
					ends[s+10] = append(ends[s+10], a.ID)
				}
				w = workers[0]
			}
			if cfg.ReserveAfter < 0 {
				want(t, "without a reservation it starts after", 0, started)
				return
			}
			if started < 50 || started > 60 {
				t.Errorf("it came at 20 s and started at %d s, want 50 to 60: reserved after 30 s, while small ones run 10 s", started)
			}
		})
	}
}

// TestReservationAndOthersTurns: a tenant with a long queue has a worker reserved for a large job. Another's single job starts within one job's
// run time all the same, and a crowd of others' does not keep the large one from running.
func TestReservationAndOthersTurns(t *testing.T) {
	const runs = 10
	for comes := 25; comes < 65; comes++ {
		for _, crowd := range []int{1, 100} {
			q := match.New(match.Config{})
			many(q, "a", 5000, match.Item{Since: now})
			w := small("w", 0, 8, 8192)
			w.Free.VCPUs = 8
			started, ends := map[string]int{}, map[int][]int{}
			for s := range 100 {
				for _, n := range ends[s] {
					w.Free.VCPUs += n
				}
				at := now.Add(time.Duration(s) * time.Second)
				if s == 1 {
					q.Push(match.Item{ID: "large", Tenant: "a", Since: at, Priority: 9, Resources: jobs.Resources{VCPUs: 8}})
				}
				if n := s - comes; n >= 0 && n%2 == 0 && n/2 < crowd { // half of what there is room for
					q.Push(match.Item{ID: fmt.Sprint("single", n/2), Tenant: fmt.Sprint("b", s), Since: at})
				}
				w.Slots, w.Free.MemoryMiB = w.Free.VCPUs, 8192
				if s < 8 {
					w.Slots = 1 // so that not all of its jobs end at once
				}
				workers := []match.Worker{w}
				free := w.Free.VCPUs
				out, _ := q.Match(at, workers, nil)
				w = workers[0]
				for _, a := range out {
					q.Release(a.ID)
					started[a.ID] = s
					size := 1
					if a.ID == "large" {
						size = 8
					}
					ends[s+runs] = append(ends[s+runs], size)
					free -= size
				}
				w.Free.VCPUs = free
			}
			if waited := started["single0"] - comes; waited > runs {
				t.Errorf("a single job that came at %d s, the first of %d, waited %d s, and jobs run %d", comes, crowd, waited, runs)
			}
			if at := started["large"]; at == 0 || at > 30+4*runs { // what runs ends, eight others come and end
				t.Errorf("beside %d that came from %d s on, the large job started at %d s", crowd, comes, at)
			}
		}
	}
}

// TestOneReservation: the host that lacks least is reserved, no other is, and everybody else is served meanwhile.
func TestOneReservation(t *testing.T) {
	q := match.New(match.Config{})
	late := now.Add(time.Minute)
	many(q, "big", 3, match.Item{Since: now, Resources: jobs.Resources{VCPUs: 8}})
	many(q, "other", 3, match.Item{Since: now, Image: "python", Resources: jobs.Resources{VCPUs: 8}})
	many(q, "small", 100, match.Item{Since: now})
	at := func(frees ...int) []string {
		var workers []match.Worker
		for n, free := range frees {
			w := small(string(rune('a'+n)), free, 8, 8192)
			w.Free.VCPUs = free
			workers = append(workers, w)
		}
		out, _ := q.Match(late, workers, fleet(workers))
		return told(out, workers)
	}
	want(t, "b is kept", []string{"small1>c", "small2>a", "small3>a"}, at(2, 5, 1))
	want(t, "b is kept still", []string{"small4>c"}, at(0, 7, 1))
	q.Remove("big1")
	want(t, "for the tenant's next too, which goes elsewhere; then for another's", []string{"big2>c"}, at(0, 2, 8))
	want(t, "others are not kept", []string{"small5>a"}, at(1, 2, 0))
	for n := range 3 {
		q.Remove(fmt.Sprint("big", n+1))
		q.Remove(fmt.Sprint("other", n+1))
	}
	want(t, "when nobody needs it", []string{"small6>b", "small7>b"}, at(0, 2))
}

// TestReservedWorkerIsGone: the next that asks takes its place.
func TestReservedWorkerIsGone(t *testing.T) {
	q := match.New(match.Config{})
	many(q, "big", 1, match.Item{Since: now, Resources: jobs.Resources{VCPUs: 8}})
	many(q, "small", 9, match.Item{Since: now})
	half := func(name string) []match.Worker {
		w := small(name, 1, 8, 8192)
		w.Free.VCPUs = 4
		return []match.Worker{w}
	}
	late := now.Add(time.Minute)
	for _, name := range []string{"a", "b"} {
		workers := half(name)
		if out, _ := q.Match(late, workers, fleet(workers)); len(out) > 0 {
			t.Errorf("%v were matched to the worker that is reserved", told(out, workers))
		}
	}
	workers := []match.Worker{small("a", 1, 8, 8192)}
	out, _ := q.Match(late, workers, fleet(workers))
	want(t, "to whom it fits", []string{"big1>a"}, told(out, workers))
}
