package match_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher/match"
	"github.com/paddockvm/paddock/jobs"
)

var (
	now  = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	room = jobs.Resources{VCPUs: 64, MemoryMiB: 1 << 16}
)

// idle is a worker with much room and some slots.
func idle(name string, slots int) match.Worker {
	return match.Worker{Name: name, Slots: slots, Free: room, Capacity: room}
}

// small is a worker with a certain room, all of it free.
func small(name string, slots, vcpus, mib int) match.Worker {
	r := jobs.Resources{VCPUs: vcpus, MemoryMiB: mib}
	return match.Worker{Name: name, Slots: slots, Free: r, Capacity: r}
}

func warm(w match.Worker, image string, n int) match.Worker {
	w.Warm = map[string]int{image: n}
	return w
}

// holding is a worker that has the templates of an image's machines of these shapes, and of nothing else.
func holding(w match.Worker, image string, shapes ...jobs.Shape) match.Worker {
	w.Templates = map[string][]jobs.Shape{image: shapes}
	return w
}

func offering(w match.Worker, images map[string]jobs.Resources) match.Worker {
	w.Images = images
	return w
}

func queued(items ...match.Item) *match.Queue {
	q := match.New(match.Config{})
	for _, i := range items {
		q.Push(i)
	}
	return q
}

// fleet is those that ask, as they are when it is asked for, and others.
func fleet(asking []match.Worker, others ...match.Worker) func() []match.Worker {
	return func() []match.Worker { return append(slices.Clone(asking), others...) }
}

// told writes assignments as job>worker, in their order.
func told(out []match.Assignment, workers []match.Worker) []string {
	list := []string{}
	for _, a := range out {
		list = append(list, a.ID+">"+workers[a.Worker].Name)
	}
	return list
}

// own is the shape of the tests' images, which have no size.
var own = jobs.Shape{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 1}}

// card is a worker whose machines may have a network card and ports.
func card(name string) match.Worker {
	w := idle(name, 1)
	w.Networks = []string{"internet", "ports"}
	return w
}

func TestMatch(t *testing.T) {
	python := match.Item{ID: "1", Image: "python"}
	large := match.Item{ID: "large", Image: "python", Resources: jobs.Resources{VCPUs: 8, MemoryMiB: 4096}}
	little := match.Item{ID: "small", Image: "python", Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}
	avoidsA := match.Item{ID: "1", Image: "python", Avoid: []string{"a"}, AvoidUntil: now.Add(time.Second)}
	avoidsAB := match.Item{ID: "1", Image: "python", Avoid: []string{"b", "a"}, AvoidUntil: now.Add(time.Second)}
	avoidedA := match.Item{ID: "1", Image: "python", Avoid: []string{"a"}, AvoidUntil: now}
	for _, tt := range []struct {
		name    string
		items   []match.Item
		workers []match.Worker // those that ask
		others  []match.Worker // those that do not
		want    []string
		next    time.Time
	}{
		{name: "nothing at all", want: []string{}},
		{name: "no jobs", workers: []match.Worker{idle("a", 1)}, want: []string{}},
		{name: "no workers", items: []match.Item{python}, want: []string{}},
		{
			name:    "the oldest first",
			items:   []match.Item{{ID: "1"}, {ID: "2"}, {ID: "3"}},
			workers: []match.Worker{idle("a", 2)},
			want:    []string{"1>a", "2>a"},
		},
		{
			name:    "one that comes again stands where it stood",
			items:   []match.Item{{ID: "2", Since: now.Add(time.Second)}, {ID: "3", Since: now.Add(2 * time.Second)}, {ID: "1", Since: now}},
			workers: []match.Worker{idle("a", 2)},
			want:    []string{"1>a", "2>a"},
		},
		{
			name:    "the highest priority before the oldest",
			items:   []match.Item{{ID: "old", Priority: 5}, {ID: "low", Priority: 0}, {ID: "high", Priority: 9}, {ID: "young", Priority: 5}},
			workers: []match.Worker{idle("a", 3)},
			want:    []string{"high>a", "old>a", "young>a"},
		},
		{
			name:    "priorities beyond the ends count as the ends",
			items:   []match.Item{{ID: "-1", Priority: -1}, {ID: "0", Priority: 0}, {ID: "9", Priority: 9}, {ID: "10", Priority: 10}},
			workers: []match.Worker{idle("a", 4)},
			want:    []string{"9>a", "10>a", "-1>a", "0>a"},
		},
		{
			name: "a step of priority is worth half a minute",
			items: []match.Item{
				{ID: "5, 29 s later", Priority: 5, Since: now.Add(29 * time.Second)}, {ID: "5, 31 s later", Priority: 5, Since: now.Add(31 * time.Second)},
				{ID: "4", Priority: 4, Since: now}, {ID: "0, 2 min earlier", Since: now.Add(-122 * time.Second)},
			},
			workers: []match.Worker{idle("a", 4)},
			want:    []string{"0, 2 min earlier>a", "5, 29 s later>a", "4>a", "5, 31 s later>a"},
		},
		{
			name:    "a warm machine before the fuller worker",
			items:   []match.Item{python},
			workers: []match.Worker{small("a", 1, 1, 1), warm(idle("b", 1), "python", 1)},
			want:    []string{"1>b"},
		},
		{
			name:    "each warm machine once",
			items:   []match.Item{{ID: "1", Image: "python"}, {ID: "2", Image: "python"}},
			workers: []match.Worker{small("a", 1, 1, 1), warm(idle("b", 5), "python", 1)},
			want:    []string{"1>b", "2>a"},
		},
		{
			name:    "a warm machine of another image is none",
			items:   []match.Item{python},
			workers: []match.Worker{small("a", 1, 1, 1), warm(idle("b", 1), "base", 3)},
			want:    []string{"1>a"},
		},
		{
			name:    "a template before the fuller worker, each time",
			items:   []match.Item{{ID: "1", Image: "python"}, {ID: "2", Image: "python"}},
			workers: []match.Worker{holding(small("a", 1, 1, 1), "base", own), holding(idle("b", 2), "python", own)},
			want:    []string{"1>b", "2>b"},
		},
		{
			name:    "a warm machine before a template",
			items:   []match.Item{python},
			workers: []match.Worker{holding(small("a", 1, 1, 1), "python", own), warm(holding(idle("b", 1), "python", own), "python", 1)},
			want:    []string{"1>b"},
		},
		{
			name:    "who does not say counts as one that has it",
			items:   []match.Item{python},
			workers: []match.Worker{holding(small("a", 1, 1, 1), "python"), small("b", 1, 9, 9), holding(small("c", 1, 10, 10), "python", own)},
			want:    []string{"1>b"},
		},
		{
			name:    "where all have to build it, the fuller worker",
			items:   []match.Item{python},
			workers: []match.Worker{holding(small("a", 1, 9, 9), "python"), holding(small("b", 1, 1, 1), "python")},
			want:    []string{"1>b"},
		},
		{
			name:    "a warm machine is none where the template is not there: it has another shape, or is of an image as it was",
			items:   []match.Item{{ID: "1", Image: "python", Network: "internet"}},
			workers: []match.Worker{warm(holding(card("a"), "python", own), "python", 1), holding(card("b"), "python", own, jobs.Shape{Resources: own.Resources, NIC: true})},
			want:    []string{"1>b"},
		},
		{
			name:    "ports need no card",
			items:   []match.Item{{ID: "1", Image: "python", Network: "ports"}},
			workers: []match.Worker{holding(card("a"), "python", jobs.Shape{Resources: own.Resources, NIC: true}), holding(card("b"), "python", own)},
			want:    []string{"1>b"},
		},
		{
			name:  "the template of the size that is made",
			items: []match.Item{{ID: "1", Image: "python", Resources: jobs.Resources{MemoryMiB: 300}}},
			workers: []match.Worker{
				holding(idle("a", 1), "python", own, jobs.Shape{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 300}}),
				holding(idle("b", 1), "python", jobs.Shape{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 320}}),
			},
			want: []string{"1>b"},
		},
		{
			name:  "one of a machine that can grow is another",
			items: []match.Item{python},
			workers: []match.Worker{
				holding(small("a", 1, 1, 1), "python", jobs.Shape{Resources: own.Resources, Headroom: jobs.Resources{VCPUs: 2}}), holding(small("b", 1, 9, 9), "python", own),
			},
			want: []string{"1>b"},
		},
		{
			name:  "the fullest worker, by the scarcer of processors and memory",
			items: []match.Item{little},
			workers: []match.Worker{
				{Name: "a", Slots: 9, Free: jobs.Resources{VCPUs: 6, MemoryMiB: 6000}, Capacity: jobs.Resources{VCPUs: 8, MemoryMiB: 8000}},
				{Name: "b", Slots: 9, Free: jobs.Resources{VCPUs: 7, MemoryMiB: 2000}, Capacity: jobs.Resources{VCPUs: 8, MemoryMiB: 8000}},
				{Name: "c", Slots: 9, Free: jobs.Resources{VCPUs: 4, MemoryMiB: 8000}, Capacity: jobs.Resources{VCPUs: 8, MemoryMiB: 8000}},
			},
			want: []string{"small>b"},
		},
		{
			name:    "of equally full ones the one with the fewest of the tenant's, then the one with most slots",
			items:   []match.Item{{ID: "1"}, {ID: "2"}, {ID: "3"}, {ID: "4"}},
			workers: []match.Worker{small("a", 1, 1000, 1000), small("b", 3, 1000, 1000)},
			want:    []string{"1>b", "2>a", "3>b", "4>b"},
		},
		{
			name:    "no slots, no jobs",
			items:   []match.Item{python},
			workers: []match.Worker{idle("a", 0), idle("b", 1)},
			want:    []string{"1>b"},
		},
		{
			name:    "a worker with fewer than no slots takes none from the others",
			items:   []match.Item{python},
			workers: []match.Worker{idle("a", -5), idle("b", 1)},
			want:    []string{"1>b"},
		},
		{
			name:    "what is too large waits, and does not hold up what fits",
			items:   []match.Item{large, little},
			workers: []match.Worker{small("a", 2, 4, 8192)},
			want:    []string{"small>a"},
		},
		{
			name:    "what one has taken is not there for the next",
			items:   []match.Item{{ID: "1", Resources: jobs.Resources{VCPUs: 3, MemoryMiB: 1}}, {ID: "2", Resources: jobs.Resources{VCPUs: 2, MemoryMiB: 1}}},
			workers: []match.Worker{small("a", 9, 4, 100)},
			want:    []string{"1>a"},
		},
		{
			name:    "memory counts as processors do",
			items:   []match.Item{little},
			workers: []match.Worker{small("a", 1, 4, 255), small("b", 1, 1, 256)},
			want:    []string{"small>b"},
		},
		{
			name:  "a job without a size has the image's on that worker",
			items: []match.Item{python},
			workers: []match.Worker{
				offering(small("a", 9, 1, 512), map[string]jobs.Resources{"python": {VCPUs: 2, MemoryMiB: 256}}),
				offering(small("b", 1, 1, 512), map[string]jobs.Resources{"python": {VCPUs: 1, MemoryMiB: 512}}),
			},
			want: []string{"1>b"},
		},
		{
			name:    "an image that nobody offers waits",
			items:   []match.Item{{ID: "1", Image: "windows"}, {ID: "2", Image: "python"}},
			workers: []match.Worker{offering(idle("a", 2), map[string]jobs.Resources{"python": {}})},
			want:    []string{"2>a"},
		},
		{
			name:    "a worker without images takes nothing",
			items:   []match.Item{python},
			workers: []match.Worker{offering(idle("a", 2), map[string]jobs.Resources{})},
			want:    []string{},
		},
		{
			name:    "a network that a worker does not offer waits for one that does, and holds nobody up",
			items:   []match.Item{{ID: "1", Network: "allowlist"}, {ID: "2", Network: "internet,ipv6"}, {ID: "3", Network: "internet"}, {ID: "4"}},
			workers: []match.Worker{idle("a", 3), {Name: "b", Slots: 1, Free: room, Capacity: room, Networks: []string{"internet"}}},
			want:    []string{"3>b", "4>a"},
		},
		{
			name:    "labels: all that are required, and their values",
			items:   []match.Item{{ID: "1", Requires: "arch=arm64"}, {ID: "2", Requires: "arch=amd64,os=linux"}, {ID: "3", Requires: "os=linux"}, {ID: "4", Requires: "gpu="}, {ID: "5"}},
			workers: []match.Worker{{Name: "a", Slots: 1, Free: room, Capacity: room}, {Name: "b", Slots: 5, Free: room, Capacity: room, Labels: map[string]string{"os": "linux", "arch": "arm64"}}},
			want:    []string{"1>b", "3>b", "5>b"}, // b is fuller now
		},
		{
			name:    "a pool has its own workers, and no name is the default one",
			items:   []match.Item{{ID: "1", Pool: "gpu"}, {ID: "2"}, {ID: "3", Pool: jobs.DefaultPool}, {ID: "4", Pool: "none"}},
			workers: []match.Worker{{Name: "a", Slots: 9, Free: room, Capacity: room}, {Name: "b", Pool: "gpu", Slots: 9, Free: room, Capacity: room}},
			want:    []string{"2>a", "3>a", "1>b"},
		},
		{
			name:    "too early, and when it will not be",
			items:   []match.Item{{ID: "1", NotBefore: now.Add(time.Minute)}, {ID: "2", NotBefore: now.Add(time.Second)}, {ID: "3", NotBefore: now}},
			workers: []match.Worker{idle("a", 9)},
			want:    []string{"3>a"},
			next:    now.Add(time.Second),
		},
		{
			name:    "not to the last worker while others live, though it is warm",
			items:   []match.Item{avoidsA},
			workers: []match.Worker{warm(idle("a", 9), "python", 1), idle("b", 1)},
			want:    []string{"1>b"},
		},
		{
			name:    "to the last worker after a while",
			items:   []match.Item{avoidedA},
			workers: []match.Worker{idle("a", 9)},
			others:  []match.Worker{idle("b", 0)},
			want:    []string{"1>a"},
		},
		{
			name:    "not to the last worker while others live, though these do not ask, and when it may go there",
			items:   []match.Item{avoidsA},
			workers: []match.Worker{idle("a", 9)},
			others:  []match.Worker{{Name: "b", Capacity: room}},
			want:    []string{},
			next:    now.Add(time.Second),
		},
		{
			name:    "to none of the last workers",
			items:   []match.Item{avoidsAB},
			workers: []match.Worker{idle("a", 9), idle("b", 9)},
			others:  []match.Worker{{Name: "c", Capacity: room}},
			want:    []string{},
			next:    now.Add(time.Second),
		},
		{
			name:    "to the last workers where there are no others",
			items:   []match.Item{avoidsAB},
			workers: []match.Worker{idle("a", 9), idle("b", 9)},
			want:    []string{"1>a"},
		},
		{
			name:    "to the last worker where the others could not take it: of another pool, without the image, too small",
			items:   []match.Item{avoidsA},
			workers: []match.Worker{idle("a", 9)},
			others:  []match.Worker{{Name: "b", Pool: "gpu", Capacity: room}, offering(idle("c", 1), map[string]jobs.Resources{"base": {}}), {Name: "d"}},
			want:    []string{"1>a"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := queued(tt.items...)
			out, next := q.Match(now, tt.workers, fleet(tt.workers, tt.others...))
			if diff := cmp.Diff(tt.want, told(out, tt.workers)); diff != "" {
				t.Errorf("assignments (-want +got):\n%s", diff)
			}
			if len(tt.want) > 0 && tt.next.IsZero() { // what avoids somebody no more has a time, and has gone
				next = time.Time{}
			}
			if !next.Equal(tt.next) {
				t.Errorf("next is %v, want %v", next, tt.next)
			}
			if want := len(tt.items) - len(tt.want); q.Len() != want {
				t.Errorf("%d items wait, want %d", q.Len(), want)
			}
		})
	}
}

func TestMatchReducesWorkers(t *testing.T) {
	workers := []match.Worker{{Name: "a", Slots: 3, Free: jobs.Resources{VCPUs: 4, MemoryMiB: 1000}, Warm: map[string]int{"python": 2}}}
	queued(match.Item{ID: "1", Image: "python", Resources: jobs.Resources{VCPUs: 2, MemoryMiB: 300}}).Match(now, workers, nil)
	want := []match.Worker{{Name: "a", Slots: 2, Free: jobs.Resources{VCPUs: 2, MemoryMiB: 700}, Warm: map[string]int{"python": 1}}}
	if diff := cmp.Diff(want, workers); diff != "" {
		t.Errorf("workers (-want +got):\n%s", diff)
	}
}

func TestQueue(t *testing.T) {
	q := queued(match.Item{ID: "2"}, match.Item{ID: "3"}, match.Item{ID: "high", Priority: 9}, match.Item{ID: "1", Since: time.Unix(-1, 0)})
	if !q.Remove("3") || q.Remove("3") || q.Remove("never") {
		t.Error("Remove must tell whether the item was in")
	}
	q.Push(match.Item{ID: "2", Priority: 8}) // again: it is there once
	if q.Len() != 3 {
		t.Errorf("%d items, want 3", q.Len())
	}
	if diff := cmp.Diff([]string{"high", "2", "1"}, drain(q)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if q.Len() != 0 || q.Remove("1") {
		t.Error("what was matched is still in")
	}
	if !q.Release("1") || q.Release("1") || q.Release("3") {
		t.Error("Release must tell whether the item was held")
	}
	q.Push(match.Item{ID: "2"})
	if q.Release("2") {
		t.Error("what waits is held")
	}
	q.Hold(match.Item{ID: "2"}, "a")
	if q.Len() != 0 || !q.Release("2") {
		t.Error("what is held waits")
	}
}

// drain matches everything, in order.
func drain(q *match.Queue) []string {
	ids := []string{}
	all := jobs.Resources{VCPUs: 1 << 30, MemoryMiB: 1 << 40}
	out, _ := q.Match(now.Add(1000*time.Hour), []match.Worker{{Name: "all", Slots: 1 << 30, Networks: networks, Labels: labels, Free: all, Capacity: all}}, nil)
	for _, a := range out {
		ids = append(ids, a.ID)
	}
	return ids
}

var (
	networks = []string{"internet", "allowlist"}
	labels   = map[string]string{"arch": "amd64", "os": "linux"}
)

// TestLongQueueOfWhatNobodyTakes: however much waits that nobody can take now, what can be taken is, at whatever priority; and the
// others keep their turn.
func TestLongQueueOfWhatNobodyTakes(t *testing.T) {
	for name, blocked := range map[string]match.Item{
		"too large":     {Resources: jobs.Resources{VCPUs: 1000}},
		"no such image": {Image: "windows"},
		"no such label": {Requires: "arch=amd64"},
		"avoids":        {Avoid: []string{"a"}, AvoidUntil: now.Add(time.Hour)},
		"too early":     {NotBefore: now.Add(time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			q := match.New(match.Config{})
			var want []string
			for n := range 5000 {
				i := blocked
				i.ID, i.Priority = fmt.Sprint(n), 5
				q.Push(i)
				want = append(want, i.ID)
			}
			q.Push(match.Item{ID: "same", Image: "python", Priority: 5})
			q.Push(match.Item{ID: "low", Image: "python"})
			workers := []match.Worker{offering(idle("a", 4), map[string]jobs.Resources{"python": {}, "": {}})}
			out, _ := q.Match(now, workers, fleet(workers, idle("b", 0)))
			if diff := cmp.Diff([]string{"same>a", "low>a"}, told(out, workers)); diff != "" {
				t.Errorf("assignments (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, drain(q)); diff != "" {
				t.Errorf("what is left (-want +got):\n%s", diff)
			}
		})
	}
}
