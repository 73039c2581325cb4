package match_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

// shares gives each tenant that is named its share.
func shares(of map[string]match.Share) match.Config {
	return match.Config{Share: func(tenant string) match.Share { return of[tenant] }}
}

// many pushes n items of a tenant, named a1, a2, ...
func many(q *match.Queue, tenant string, n int, like match.Item) {
	for i := range n {
		like.ID, like.Tenant = fmt.Sprint(tenant, i+1), tenant
		q.Push(like)
	}
}

// next gives the next items, as one worker with so many slots gets them.
func next(q *match.Queue, slots int) []string {
	return nextOf(q, small("w", slots, 10_000, 10_000))
}

func nextOf(q *match.Queue, w match.Worker) []string {
	out, _ := q.Match(now, []match.Worker{w}, nil)
	return ids(out)
}

func ids(out []match.Assignment) []string {
	list := []string{}
	for _, a := range out {
		list = append(list, a.ID)
	}
	return list
}

// of counts items by tenant: the letters that their names begin with.
func of(ids []string) map[string]int {
	n := map[string]int{}
	for _, id := range ids {
		n[strings.TrimRight(id, "0123456789")]++
	}
	return n
}

func want[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestTenantsTakeTurns(t *testing.T) {
	q := match.New(match.Config{})
	many(q, "a", 1000, match.Item{Priority: 9})
	many(q, "b", 3, match.Item{})
	want(t, "turns", []string{"a1", "b1", "a2", "b2", "a3"}, next(q, 5))
	many(q, "c", 1, match.Item{})
	want(t, "who comes anew is next but for who is behind", []string{"b3", "c1", "a4", "a5"}, next(q, 4))
	many(q, "c", 1, match.Item{})
	want(t, "who comes again has its turn, and not more", []string{"c1", "a6"}, next(q, 2))
}

func TestNobodySavesUp(t *testing.T) {
	q := match.New(match.Config{})
	many(q, "a", 1000, match.Item{})
	many(q, "b", 100, match.Item{Image: "windows"})
	linux := offering(small("w", 100, 1000, 1000), map[string]jobs.Resources{"": {}})
	want(t, "while nobody takes b's", map[string]int{"a": 100}, of(nextOf(q, linux)))
	want(t, "shares after b could not be served for a while", map[string]int{"a": 10, "b": 10}, of(next(q, 20)))
}

func TestWeights(t *testing.T) {
	q := match.New(shares(map[string]match.Share{"a": {Weight: 1}, "b": {Weight: 2}, "c": {Weight: 7}}))
	for _, tenant := range []string{"a", "b", "c"} {
		many(q, tenant, 500, match.Item{})
	}
	want(t, "parts", map[string]int{"a": 20, "b": 40, "c": 140}, of(next(q, 200)))
}

// TestProcessorsAreWhatIsShared: who asks for large machines gets fewer of them.
func TestProcessorsAreWhatIsShared(t *testing.T) {
	q := match.New(match.Config{})
	many(q, "a", 1000, match.Item{Resources: jobs.Resources{VCPUs: 4}})
	many(q, "b", 1000, match.Item{})
	want(t, "parts", map[string]int{"a": 20, "b": 80}, of(next(q, 100)))
}

// TestPriorityIsWithinATenant: nobody gains over others by raising the priority of its own.
func TestPriorityIsWithinATenant(t *testing.T) {
	for _, priority := range []int{0, 5, 9} {
		q := match.New(match.Config{})
		many(q, "a", 100, match.Item{Priority: priority})
		many(q, "b", 100, match.Item{Priority: 5})
		want(t, fmt.Sprint("parts with the priority ", priority), map[string]int{"a": 20, "b": 20}, of(next(q, 40)))
	}
}

func TestManyKinds(t *testing.T) {
	q := match.New(match.Config{})
	for n := range 100 {
		q.Push(match.Item{ID: fmt.Sprint("a", n), Tenant: "a", Image: fmt.Sprint("image", n%50), Priority: n % 10})
	}
	many(q, "b", 100, match.Item{Image: "image1"})
	got := next(q, 60)
	want(t, "parts", map[string]int{"a": 30, "b": 30}, of(got))
	got = slices.DeleteFunc(got, func(id string) bool { return id[0] != 'a' })
	var inOrder []string
	for priority := 9; len(inOrder) < 30; priority-- {
		for n := priority; n < 100; n += 10 {
			inOrder = append(inOrder, fmt.Sprint("a", n))
		}
	}
	want(t, "the order of a tenant's jobs of many kinds", inOrder, got)
}

func TestCaps(t *testing.T) {
	for name, tt := range map[string]struct {
		share match.Share
		want  int
	}{
		"none":              {match.Share{}, 50},
		"running":           {match.Share{MaxRunning: 3}, 3},
		"vcpus":             {match.Share{MaxVCPUs: 9}, 4},
		"memory":            {match.Share{MaxMemoryMiB: 1000}, 10},
		"the least of them": {match.Share{MaxRunning: 7, MaxVCPUs: 8, MaxMemoryMiB: 1000}, 4},
		"less than one":     {match.Share{MaxVCPUs: 1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			q := match.New(shares(map[string]match.Share{"a": tt.share}))
			many(q, "a", 60, match.Item{Image: "python"})
			python := func(slots int) match.Worker {
				return offering(idle("w", slots), map[string]jobs.Resources{"python": {VCPUs: 1 + min(1, tt.share.MaxVCPUs), MemoryMiB: 100}})
			}
			first := nextOf(q, python(50))
			if len(first) != tt.want {
				t.Fatalf("%d were matched, want %d", len(first), tt.want)
			}
			if name == "none" || tt.want == 0 {
				return
			}
			want(t, "while they run", []string{}, nextOf(q, python(50)))
			for _, pool := range []string{"", "other"} { // caps are of all pools together
				q.Push(match.Item{ID: "more" + pool, Tenant: "a", Pool: pool, Image: "python", Priority: 9})
			}
			other := python(50)
			other.Pool = "other"
			want(t, "in another pool", []string{}, nextOf(q, other))
			q.Release(first[0])
			want(t, "when one has ended", []string{"more"}, nextOf(q, python(50)))
			q.Release(first[1])
			want(t, "when another has ended", []string{"moreother"}, nextOf(q, other))
		})
	}
}

// TestSmallOnesGoBesideWhatCapsHoldBack: a cap that is too small for one kind is not for another.
func TestSmallOnesGoBesideWhatCapsHoldBack(t *testing.T) {
	q := match.New(shares(map[string]match.Share{"a": {MaxVCPUs: 8}}))
	large := match.Item{Priority: 9, Resources: jobs.Resources{VCPUs: 6}}
	many(q, "a", 2, large)
	q.Push(match.Item{ID: "small", Tenant: "a"})
	q.Push(match.Item{ID: "never", Tenant: "a", Priority: 9, Resources: jobs.Resources{VCPUs: 9}})
	want(t, "beside a large one", []string{"a1", "small"}, next(q, 9))
	q.Release("a1")
	want(t, "the next large one", []string{"a2"}, next(q, 9))
	q.Release("a2")
	q.Release("small")
	want(t, "what is larger than the cap", []string{}, next(q, 9))
}

// TestAfterARestart: what runs is told to a new queue, and the caps and keys hold from its first match on.
func TestAfterARestart(t *testing.T) {
	python := map[string]jobs.Resources{"python": {VCPUs: 2, MemoryMiB: 100}}
	q := match.New(shares(map[string]match.Share{"a": {MaxVCPUs: 6}, "b": {MaxRunning: 2}}))
	for _, tenant := range []string{"a", "b"} {
		many(q, tenant, 3, match.Item{Image: "python"})
		q.Hold(match.Item{ID: tenant + "r1", Tenant: tenant, Image: "python"}, "gone")
	}
	q.Hold(match.Item{ID: "kr", Tenant: "k", Concurrency: jobs.Concurrency{Key: "repo", Limit: 1}}, "w")
	q.Push(match.Item{ID: "k1", Tenant: "k", Concurrency: jobs.Concurrency{Key: "repo", Limit: 1}})
	q.Push(match.Item{ID: "k2", Tenant: "k", Concurrency: jobs.Concurrency{Key: "repo", Limit: 2}})
	match1 := func(others ...match.Worker) []string {
		workers := []match.Worker{offering(idle("w", 9), map[string]jobs.Resources{"python": python["python"], "": {}})}
		out, _ := q.Match(now, workers, fleet(workers, others...))
		slices.Sort(ids(out))
		return ids(out)
	}
	want(t, "while the size of what a has is not known", []string{"b1", "k2"}, match1())
	want(t, "when its worker is known", []string{"a1", "a2"}, match1(offering(match.Worker{Name: "gone"}, python)))
	q.Release("ar1")
	q.Release("br1")
	q.Release("kr")
	q.Release("k2")
	got := match1()
	slices.Sort(got)
	want(t, "when they have ended", []string{"a3", "b2", "k1"}, got)
}

func TestConcurrencyKeys(t *testing.T) {
	q := match.New(match.Config{})
	key := func(name string, limit int) jobs.Concurrency { return jobs.Concurrency{Key: name, Limit: limit} }
	many(q, "a", 5, match.Item{Concurrency: key("x", 2)})
	q.Push(match.Item{ID: "other image", Tenant: "a", Image: "python", Concurrency: key("x", 2)})
	q.Push(match.Item{ID: "wider", Tenant: "a", Concurrency: key("x", 3)})
	q.Push(match.Item{ID: "y", Tenant: "a", Concurrency: key("y", 0)})
	q.Push(match.Item{ID: "y again", Tenant: "a", Concurrency: key("y", 1)})
	q.Push(match.Item{ID: "another's", Tenant: "b", Concurrency: key("x", 1)})
	want(t, "at first", []string{"a1", "another's", "a2", "wider", "y"}, next(q, 99))
	q.Release("a1")
	want(t, "wider ones count too", []string{}, next(q, 99))
	q.Release("a2")
	want(t, "after a completion", []string{"a3"}, next(q, 99))
	q.Release("wider")
	q.Release("y")
	want(t, "after others", []string{"a4", "y again"}, next(q, 99))
	q.Remove("a5")
	q.Release("a3")
	want(t, "one of another image", []string{"other image"}, next(q, 99))
}

// TestOneJobAmongFiftyThousand: the clock is simulated. However many jobs a tenant has queued, of whatever priority and size, another's
// single job starts within one job's run time.
func TestOneJobAmongFiftyThousand(t *testing.T) {
	const runs = 10 * time.Second
	for name, tt := range map[string]struct {
		like    match.Item
		weight  int
		workers int
		regular bool // the single jobs are one tenant's, which had its turns before the others came
	}{
		"alike":                      {match.Item{}, 1, 4, false},
		"one slot":                   {match.Item{}, 1, 1, false},
		"one slot, a regular":        {match.Item{}, 1, 1, true},
		"a regular":                  {match.Item{}, 1, 4, true},
		"highest priority":           {match.Item{Priority: 9}, 1, 4, false},
		"a hundred times the weight": {match.Item{}, 100, 4, false},
		"large":                      {match.Item{Resources: jobs.Resources{VCPUs: 4}}, 1, 4, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &simulation{q: match.New(shares(map[string]match.Share{"a": {Weight: tt.weight}})), now: now, runs: func(string) time.Duration { return runs }}
			for range tt.workers {
				s.free = append(s.free, small(fmt.Sprint("w", len(s.free)), 1, 4, 4096))
			}
			tt.like.Since = now
			wait := 100 * time.Second
			if tt.regular {
				many(s.q, "b", 5, match.Item{Since: now})
				s.until(now.Add(50 * time.Second))
				wait = 0
			}
			many(s.q, "a", 50_000, tt.like)
			s.until(s.now.Add(wait))
			var waited time.Duration
			for n := range 50 {
				at := s.now.Add(time.Duration(n) * 777 * time.Millisecond)
				if tt.regular && n > 0 {
					at = at.Add(runs) // the last has ended
				}
				s.until(at)
				single := match.Item{ID: fmt.Sprint("single ", n), Tenant: fmt.Sprint("b", n), Since: at}
				if tt.regular {
					single.Tenant = "b"
				}
				s.q.Push(single)
				s.untilStarted(single.ID)
				waited = max(waited, s.now.Sub(at))
			}
			if waited > runs {
				t.Errorf("a single job waited %v, and jobs run %v", waited, runs)
			}
		})
	}
}

// simulation is a fleet with a clock: workers ask as soon as they are free, and what they get runs its time.
type simulation struct {
	q       *match.Queue
	now     time.Time
	runs    func(id string) time.Duration
	free    []match.Worker
	busy    []running // the first to end first
	started map[string]bool
}

type running struct {
	id     string
	until  time.Time
	worker match.Worker
}

func (s *simulation) match() {
	out, _ := s.q.Match(s.now, s.free, func() []match.Worker {
		all := slices.Clone(s.free)
		for _, r := range s.busy {
			all = append(all, r.worker)
		}
		return all
	})
	gone := map[int]bool{}
	for _, a := range out {
		w := s.free[a.Worker]
		w.Slots, w.Free = 1, w.Capacity
		s.busy = append(s.busy, running{a.ID, s.now.Add(s.runs(a.ID)), w})
		if s.started == nil {
			s.started = map[string]bool{}
		}
		s.started[a.ID], gone[a.Worker] = true, true
	}
	slices.SortStableFunc(s.busy, func(a, b running) int { return a.until.Compare(b.until) })
	var free []match.Worker
	for n, w := range s.free {
		if !gone[n] {
			free = append(free, w)
		}
	}
	s.free = free
}

// step goes on to when the next one ends, or to a time.
func (s *simulation) step(to time.Time) {
	s.match()
	if len(s.busy) == 0 || s.busy[0].until.After(to) {
		s.now = to
		return
	}
	r := s.busy[0]
	s.busy = s.busy[1:]
	s.now = r.until
	s.q.Release(r.id)
	s.free = append(s.free, r.worker)
}

func (s *simulation) until(t time.Time) {
	for s.now.Before(t) {
		s.step(t)
	}
}

func (s *simulation) untilStarted(id string) {
	for s.match(); !s.started[id]; s.match() {
		s.step(s.now.Add(time.Hour))
	}
}

// Of tenants that come once and have nothing any more a bounded number is remembered.
func TestTenantsThatComeOnce(t *testing.T) {
	q := match.New(match.Config{})
	for n := range 15_000 {
		id := fmt.Sprint(n)
		q.Push(match.Item{ID: id, Tenant: "t" + id, Image: "python", Since: now})
		if out, _ := q.Match(now, []match.Worker{idle("w", 1)}, nil); len(out) != 1 {
			t.Fatalf("tenant %d: %v", n, out)
		}
		q.Release(id)
	}
	if n := q.Tenants(); n > 10_000 {
		t.Errorf("%d tenants are remembered", n)
	}
	// Who has had a turn, and is remembered, is behind who has had none.
	for _, tenant := range []string{"t14999", "new"} {
		q.Push(match.Item{ID: tenant, Tenant: tenant, Image: "python", Since: now})
	}
	if out, _ := q.Match(now, []match.Worker{idle("w", 1)}, nil); len(out) != 1 || out[0].ID != "new" {
		t.Errorf("whose turn it is: %v", out)
	}
}
