package match_test

import (
	"fmt"
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
	return match.Worker{Name: name, Slots: slots, Free: room}
}

func queued(items ...match.Item) *match.Queue {
	q := match.New()
	for _, i := range items {
		q.Push(i)
	}
	return q
}

// told writes assignments as job>worker, in their order.
func told(out []match.Assignment, workers []match.Worker) []string {
	list := []string{}
	for _, a := range out {
		list = append(list, a.Item.ID+">"+workers[a.Worker].Name)
	}
	return list
}

func TestMatch(t *testing.T) {
	python := match.Item{ID: "1", Image: "python"}
	large := match.Item{ID: "large", Image: "python", Resources: jobs.Resources{VCPUs: 8, MemoryMiB: 4096}}
	small := match.Item{ID: "small", Image: "python", Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}
	avoidsA := match.Item{ID: "1", Image: "python", Avoid: "a", AvoidUntil: now.Add(time.Second)}
	avoidedA := match.Item{ID: "1", Image: "python", Avoid: "a", AvoidUntil: now}
	for _, tt := range []struct {
		name    string
		items   []match.Item
		workers []match.Worker
		lonely  bool // nobody else is alive
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
			name:    "a warm machine before more room",
			items:   []match.Item{python},
			workers: []match.Worker{idle("a", 9), {Name: "b", Slots: 1, Free: room, Warm: map[string]int{"python": 1}}},
			want:    []string{"1>b"},
		},
		{
			name:    "each warm machine once",
			items:   []match.Item{{ID: "1", Image: "python"}, {ID: "2", Image: "python"}},
			workers: []match.Worker{idle("a", 9), {Name: "b", Slots: 5, Free: room, Warm: map[string]int{"python": 1}}},
			want:    []string{"1>b", "2>a"},
		},
		{
			name:    "a warm machine of another image is none",
			items:   []match.Item{python},
			workers: []match.Worker{idle("a", 2), {Name: "b", Slots: 1, Free: room, Warm: map[string]int{"base": 3}}},
			want:    []string{"1>a"},
		},
		{
			name:    "without warm machines the most slots, and so they are spread",
			items:   []match.Item{{ID: "1"}, {ID: "2"}, {ID: "3"}},
			workers: []match.Worker{idle("a", 1), idle("b", 3)},
			want:    []string{"1>b", "2>b", "3>a"},
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
			items:   []match.Item{large, small},
			workers: []match.Worker{{Name: "a", Slots: 2, Free: jobs.Resources{VCPUs: 4, MemoryMiB: 8192}}},
			want:    []string{"small>a"},
		},
		{
			name:    "what one has taken is not there for the next",
			items:   []match.Item{{ID: "1", Resources: jobs.Resources{VCPUs: 3, MemoryMiB: 1}}, {ID: "2", Resources: jobs.Resources{VCPUs: 2, MemoryMiB: 1}}},
			workers: []match.Worker{{Name: "a", Slots: 9, Free: jobs.Resources{VCPUs: 4, MemoryMiB: 100}}},
			want:    []string{"1>a"},
		},
		{
			name:    "memory counts as processors do",
			items:   []match.Item{small},
			workers: []match.Worker{{Name: "a", Slots: 1, Free: jobs.Resources{VCPUs: 4, MemoryMiB: 255}}, {Name: "b", Slots: 1, Free: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}},
			want:    []string{"small>b"},
		},
		{
			name:  "a job without a size has the image's on that worker",
			items: []match.Item{python},
			workers: []match.Worker{
				{Name: "a", Slots: 9, Free: jobs.Resources{VCPUs: 1, MemoryMiB: 512}, Images: map[string]jobs.Resources{"python": {VCPUs: 2, MemoryMiB: 256}}},
				{Name: "b", Slots: 1, Free: jobs.Resources{VCPUs: 1, MemoryMiB: 512}, Images: map[string]jobs.Resources{"python": {VCPUs: 1, MemoryMiB: 512}}},
			},
			want: []string{"1>b"},
		},
		{
			name:    "an image that nobody offers waits",
			items:   []match.Item{{ID: "1", Image: "windows"}, {ID: "2", Image: "python"}},
			workers: []match.Worker{{Name: "a", Slots: 2, Free: room, Images: map[string]jobs.Resources{"python": {}}}},
			want:    []string{"2>a"},
		},
		{
			name:    "a worker without images takes nothing",
			items:   []match.Item{python},
			workers: []match.Worker{{Name: "a", Slots: 2, Free: room, Images: map[string]jobs.Resources{}}},
			want:    []string{},
		},
		{
			name:    "a network that a worker does not offer waits for one that does, and holds nobody up",
			items:   []match.Item{{ID: "1", Network: "allowlist"}, {ID: "2", Network: "internet,ipv6"}, {ID: "3", Network: "internet"}, {ID: "4"}},
			workers: []match.Worker{idle("a", 3), {Name: "b", Slots: 1, Free: room, Networks: []string{"internet"}}},
			want:    []string{"3>b", "4>a"},
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
			workers: []match.Worker{{Name: "a", Slots: 9, Free: room, Warm: map[string]int{"python": 1}}, idle("b", 1)},
			want:    []string{"1>b"},
		},
		{
			name:    "to the last worker after a while",
			items:   []match.Item{avoidedA},
			workers: []match.Worker{idle("a", 9)},
			want:    []string{"1>a"},
		},
		{
			name:    "not to the last worker while others live, though these do not ask, and when it may go there",
			items:   []match.Item{avoidsA},
			workers: []match.Worker{idle("a", 9)},
			want:    []string{},
			next:    now.Add(time.Second),
		},
		{
			name:    "to the last worker where there is no other",
			items:   []match.Item{avoidsA},
			workers: []match.Worker{idle("a", 9)},
			lonely:  true,
			want:    []string{"1>a"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := queued(tt.items...)
			out, next := q.Match(now, tt.workers, func(string, match.Item) bool { return !tt.lonely })
			if diff := cmp.Diff(tt.want, told(out, tt.workers)); diff != "" {
				t.Errorf("assignments (-want +got):\n%s", diff)
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

// TestOthersAreAskedOfTheItem: whether somebody else could take an item depends on the item.
func TestOthersAreAskedOfTheItem(t *testing.T) {
	soon := now.Add(time.Second)
	q := queued(match.Item{ID: "1", Image: "python", Avoid: "a", AvoidUntil: soon}, match.Item{ID: "2", Image: "base", Avoid: "a", AvoidUntil: soon})
	workers := []match.Worker{idle("a", 2)}
	out, _ := q.Match(now, workers, func(besides string, i match.Item) bool {
		if besides != "a" {
			t.Errorf("asked for others than %q", besides)
		}
		return i.Image == "python"
	})
	if diff := cmp.Diff([]string{"2>a"}, told(out, workers)); diff != "" {
		t.Errorf("assignments (-want +got):\n%s", diff)
	}
}

func TestMatchReducesWorkers(t *testing.T) {
	workers := []match.Worker{{Name: "a", Slots: 3, Free: jobs.Resources{VCPUs: 4, MemoryMiB: 1000}, Warm: map[string]int{"python": 2}}}
	queued(match.Item{ID: "1", Image: "python", Resources: jobs.Resources{VCPUs: 2, MemoryMiB: 300}}).Match(now, workers, nobody)
	want := []match.Worker{{Name: "a", Slots: 2, Free: jobs.Resources{VCPUs: 2, MemoryMiB: 700}, Warm: map[string]int{"python": 1}}}
	if diff := cmp.Diff(want, workers); diff != "" {
		t.Errorf("workers (-want +got):\n%s", diff)
	}
}

func nobody(string, match.Item) bool { return false }

func TestQueue(t *testing.T) {
	q := queued(match.Item{ID: "2"}, match.Item{ID: "3"}, match.Item{ID: "high", Priority: 9})
	q.PushFront(match.Item{ID: "1"})
	if !q.Remove("3") || q.Remove("3") || q.Remove("never") {
		t.Error("Remove must tell whether the item was in")
	}
	if q.Len() != 3 {
		t.Errorf("%d items, want 3", q.Len())
	}
	if diff := cmp.Diff([]string{"high", "1", "2"}, drain(q)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if q.Len() != 0 || q.Remove("1") {
		t.Error("what was matched is still in")
	}
}

// drain matches everything, in order.
func drain(q *match.Queue) []string {
	ids := []string{}
	all := []match.Worker{{Name: "all", Slots: 1 << 30, Networks: []string{"internet", "allowlist"}, Free: jobs.Resources{VCPUs: 1 << 30, MemoryMiB: 1 << 40}}}
	out, _ := q.Match(now.Add(1000*time.Hour), all, nobody)
	for _, a := range out {
		ids = append(ids, a.Item.ID)
	}
	return ids
}

// TestLongQueueOfWhatNobodyTakes: however much waits that nobody can take now, what can be taken is, at whatever priority; and the
// others keep their turn.
func TestLongQueueOfWhatNobodyTakes(t *testing.T) {
	for name, blocked := range map[string]match.Item{
		"too large":     {Resources: jobs.Resources{VCPUs: 1000}},
		"no such image": {Image: "windows"},
		"avoids":        {Avoid: "a", AvoidUntil: now.Add(time.Hour)},
		"too early":     {NotBefore: now.Add(time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			q := match.New()
			var want []string
			for n := range 5000 {
				i := blocked
				i.ID, i.Priority = fmt.Sprint(n), 5
				q.Push(i)
				want = append(want, i.ID)
			}
			q.Push(match.Item{ID: "same", Image: "python", Priority: 5})
			q.Push(match.Item{ID: "low", Image: "python"})
			workers := []match.Worker{{Name: "a", Slots: 4, Free: room, Images: map[string]jobs.Resources{"python": {}, "": {}}}}
			out, _ := q.Match(now, workers, func(string, match.Item) bool { return true })
			if diff := cmp.Diff([]string{"same>a", "low>a"}, told(out, workers)); diff != "" {
				t.Errorf("assignments (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, drain(q)); diff != "" {
				t.Errorf("what is left (-want +got):\n%s", diff)
			}
		})
	}
}

// BenchmarkMatch is a match that gives one job, before a long queue: of what nobody can take, and of what anybody can.
func BenchmarkMatch(b *testing.B) {
	for name, image := range map[string]string{"blocked": "windows", "free": "python"} {
		b.Run(name, func(b *testing.B) {
			q := match.New()
			for n := range 100_000 {
				q.Push(match.Item{ID: fmt.Sprint(n), Image: image, Priority: 5})
			}
			workers := []match.Worker{{Name: "a", Images: map[string]jobs.Resources{"python": {}}}}
			for n := 0; b.Loop(); n++ {
				q.Push(match.Item{ID: fmt.Sprint("new ", n), Image: "python"})
				workers[0].Slots, workers[0].Free = 1, room
				if out, _ := q.Match(now, workers, nobody); len(out) != 1 {
					b.Fatalf("%d jobs were matched, want one", len(out))
				}
			}
		})
	}
}
