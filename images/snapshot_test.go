package images_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/checkpoint"
)

// living is a machine whose state can be kept while it runs: its memory and disk are two slices, and its devices a word.
type living struct {
	vmm.Machine  // nil: nothing else is asked of it
	tmpl         vmm.Template
	memory, disk []byte
	devices      string
	during       func(dir string) error // called when the state is half written
	then         func() error           // called when it is written
}

var _ vmm.Checkpointer = (*living)(nil)

// born is a clone of a template.
func born(t testing.TB, tmpl vmm.Template) *living {
	t.Helper()
	m, err := clone(tmpl)
	must(t, err)
	return m
}

func clone(tmpl vmm.Template) (*living, error) {
	memory, err := os.ReadFile(filepath.Join(tmpl.Dir, "memory"))
	if err != nil {
		return nil, err
	}
	disk, err := os.ReadFile(tmpl.Boot.Scratch)
	return &living{tmpl: tmpl, memory: memory, disk: disk, devices: "as cloned"}, err
}

func (*living) ID() string { return "m-living" }

func (m *living) Checkpoint(_ context.Context, dir string, base vmm.Template) (vmm.Checkpoint, error) {
	c := vmm.Checkpoint{Driver: m.tmpl.Driver, Boot: m.tmpl.Boot, Paused: time.Millisecond}
	if err := os.WriteFile(filepath.Join(dir, checkpoint.StateFile), []byte(m.devices), 0o444); err != nil {
		return c, err
	}
	var err error
	if c.MemoryBytes, err = m.delta(dir, checkpoint.MemoryFile, filepath.Join(base.Dir, "memory"), m.memory); err != nil {
		return c, err
	}
	if m.during != nil {
		if err := m.during(dir); err != nil {
			return c, err
		}
	}
	c.ScratchBytes, err = m.delta(dir, checkpoint.ScratchFile, base.Boot.Scratch, m.disk)
	if err == nil && m.then != nil {
		err = m.then()
	}
	return c, err
}

func (*living) delta(dir, name, base string, now []byte) (int64, error) {
	old, err := os.Open(base)
	if err != nil {
		return 0, err
	}
	defer old.Close()
	d, err := checkpoint.NewDelta(dir, name, old, int64(len(now)))
	if err != nil {
		return 0, err
	}
	defer d.Close()
	if err := d.Put(0, now); err != nil {
		return 0, err
	}
	return d.Finish()
}

// live changes the machine: a block of memory and one of the disk get a new content, and another of each becomes zero.
func (m *living) live(content string, block int) {
	copy(m.memory[block*checkpoint.Block+100:], content)
	clear(m.memory[(block+3)*checkpoint.Block : (block+4)*checkpoint.Block])
	copy(m.disk[block*checkpoint.Block/2:], content)
	m.devices = content
}

// ranch is a host that keeps snapshots.
type ranch struct {
	*images.Host
	t testing.TB
}

func newRanch(t testing.TB, s *images.Store) ranch {
	t.Helper()
	n, err := s.Snapshots()
	must(t, err)
	return ranch{&images.Host{Store: s, Driver: newDriver(), Caps: caps, Snapshots: n}, t}
}

func (r ranch) machine(image string) *living {
	r.t.Helper()
	tmpl, _, err := r.Template(r.t.Context(), image, jobs.Shape{})
	must(r.t, err)
	return born(r.t, tmpl)
}

func (r ranch) keep(m *living, last string, q jobs.SnapshotRequest) jobs.Snapshot {
	r.t.Helper()
	s, err := r.Snapshot(r.t.Context(), m, m.tmpl, jobs.SnapshotOrigin{Tenant: "a", Job: "j", Worker: "w", Last: last}, q)
	must(r.t, err)
	return s
}

// is checks that a snapshot is restored as a machine was.
func (r ranch) is(s jobs.Snapshot, memory, disk []byte, devices string) {
	r.t.Helper()
	tmpl, key, err := r.Template(r.t.Context(), s.Image, jobs.Shape{})
	must(r.t, err)
	if key != s.ID {
		r.t.Errorf("its template is named %s", key)
	}
	got := born(r.t, tmpl)
	state, err := os.ReadFile(filepath.Join(tmpl.Dir, "state"))
	must(r.t, err)
	if !bytes.Equal(got.memory, memory) || !bytes.Equal(got.disk, disk) || string(state) != devices {
		r.t.Errorf("snapshot %s is not what the machine was", s.Name)
	}
	r.Release(tmpl)
}

// shop is a store with an image.
func shop(t testing.TB) *images.Store {
	s := open(t)
	publish(t, s, "x", "1")
	return s
}

type moment struct {
	jobs.Snapshot
	memory, disk []byte
	devices      string
}

// line makes a grandparent, a parent and a child of one machine, and a whole snapshot of it.
func (r ranch) line() (list []moment) {
	m := r.machine("x")
	last := ""
	for i, name := range []string{"one", "two", "three", "whole"} {
		m.live(name, 2*i)
		q := jobs.SnapshotRequest{Name: name}
		if name == "whole" {
			q.Parent = jobs.ParentNone
		}
		s := r.keep(m, last, q)
		last = s.ID
		list = append(list, moment{s, bytes.Clone(m.memory), bytes.Clone(m.disk), m.devices})
	}
	return list
}

func TestSnapshotLine(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	list := r.line()
	for i, want := range []struct {
		parent string
		full   bool
	}{{"", false}, {list[0].ID, false}, {list[1].ID, false}, {"", true}} {
		if got := list[i]; got.Parent != want.parent || got.Full != want.full || got.MemoryBytes == 0 || got.PausedMS != 1 || got.Of != "x" || got.Tenant != "a" {
			t.Errorf("%+v", got.Snapshot)
		}
	}
	if list[1].StoredBytes >= list[3].StoredBytes {
		t.Errorf("a difference takes %d bytes, the whole %d", list[1].StoredBytes, list[3].StoredBytes)
	}
	for name, r := range map[string]ranch{"the same process": r, "another": newRanch(t, reopen(t, s))} {
		for _, m := range list {
			t.Log(name, m.Name)
			r.is(m.Snapshot, m.memory, m.disk, m.devices)
			r.is(m.Snapshot, m.memory, m.disk, m.devices) // from the cache
		}
	}

	// A machine that was cloned from a snapshot goes on with its line, in another process too.
	r = newRanch(t, reopen(t, s))
	m := r.machine(list[1].Image)
	m.live("branch", 1)
	branch := r.keep(m, "", jobs.SnapshotRequest{Name: "branch"})
	if branch.Parent != list[1].ID || branch.Of != "x" {
		t.Errorf("branch: %+v", branch)
	}
	r.is(branch, m.memory, m.disk, "branch")
	r.is(list[2].Snapshot, list[2].memory, list[2].disk, "three")

	// A snapshot of any machine of the image may be compared with any other's.
	other := r.machine("x")
	other.live("other", 1)
	o := r.keep(other, "", jobs.SnapshotRequest{Parent: list[2].ID})
	if o.Parent != list[2].ID || o.Name != o.ID {
		t.Errorf("other: %+v", o)
	}
	r.is(o, other.memory, other.disk, "other")
}

// What a snapshot needs is its own: the image may be built anew or removed.
func TestSnapshotOutlivesImage(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	list := r.line()
	publish(t, s, "x", "2")
	_, _, err := r.Template(t.Context(), "x", jobs.Shape{})
	must(t, err)
	must(t, s.Remove(t.Context(), "x"))
	r = newRanch(t, reopen(t, s))
	r.is(list[2].Snapshot, list[2].memory, list[2].disk, "three")
	if got := r.Env(list[2].Image); len(got) == 0 {
		t.Error("its programs have no environment")
	}
	tmpl, _, err := r.Template(t.Context(), list[0].Image, jobs.Shape{})
	must(t, err)
	b, err := os.ReadFile(tmpl.Boot.Root)
	must(t, err)
	if string(b) != "root of x1" {
		t.Errorf("root: %s", b)
	}
}

// stored gives all files that a store keeps of snapshots, the caches left out.
func stored(t testing.TB, s *images.Store) (names []string) {
	t.Helper()
	must(t, filepath.WalkDir(filepath.Join(s.Dir(), "snapshots"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.Contains(path, "/flat/") {
			names = append(names, path)
		}
		return err
	}))
	return names
}

// A byte that flips in any file of a snapshot, or of an ancestor, is found before a machine starts, and its file named.
func TestSnapshotCorrupt(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	list := r.line()[:3]
	for _, m := range list {
		r.is(m.Snapshot, m.memory, m.disk, m.devices) // the caches are there
	}
	must(t, r.Snapshots.Remove(t.Context(), lastOf(t, r).ID)) // the whole one: its files are nobody's ancestors
	child := list[2].Snapshot
	var tried int
	for _, name := range stored(t, s) {
		st, err := os.Stat(name)
		must(t, err)
		for _, off := range slices.Compact([]int64{0, st.Size() / 2, st.Size() - 1}) {
			back := flip(t, name, off)
			fresh := newRanch(t, reopen(t, s))
			_, _, err := fresh.Template(t.Context(), child.Image, jobs.Shape{})
			if err == nil || !strings.Contains(err.Error(), filepath.Base(name)) {
				t.Errorf("byte %d of %s: %v", off, name, err)
			}
			if err := fresh.Snapshots.Verify(t.Context(), child.ID); err == nil || !strings.Contains(err.Error(), filepath.Base(name)) {
				t.Errorf("verify, byte %d of %s: %v", off, name, err)
			}
			back()
			tried++
		}
	}
	if tried < 30 {
		t.Errorf("only %d bytes were tried", tried)
	}
	for _, name := range stored(t, s) { // and one that is not there
		must(t, os.Rename(name, name+".away"))
		if _, _, err := newRanch(t, reopen(t, s)).Template(t.Context(), child.Image, jobs.Shape{}); err == nil {
			t.Errorf("without %s", name)
		}
		must(t, os.Rename(name+".away", name))
	}
	fresh := newRanch(t, reopen(t, s))
	fresh.is(child, list[2].memory, list[2].disk, "three")
	for _, m := range list {
		must(t, fresh.Snapshots.Verify(t.Context(), m.ID))
	}

	// A cache is made anew.
	for _, name := range []string{"memory", "scratch", "state"} {
		flip(t, filepath.Join(s.Dir(), "snapshots", "flat", child.ID, name), 3)
		newRanch(t, reopen(t, s)).is(child, list[2].memory, list[2].disk, "three")
	}
}

func lastOf(t testing.TB, r ranch) images.Snapshot {
	t.Helper()
	all, err := r.Snapshots.List()
	must(t, err)
	return all[len(all)-1]
}

func TestSnapshotRemove(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	list := r.line()
	ctx := t.Context()
	before := stored(t, s)
	if err := r.Snapshots.Remove(ctx, list[1].ID); !errors.Is(err, images.ErrHasChildren) || !strings.Contains(err.Error(), list[2].ID) {
		t.Errorf("a parent: %v", err)
	}
	tmpl, _, err := r.Template(ctx, list[2].Image, jobs.Shape{})
	must(t, err)
	other := newRanch(t, reopen(t, s)) // another process
	if err := other.Snapshots.Remove(ctx, list[2].ID); !errors.Is(err, images.ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	if err := other.Snapshots.RemoveRebased(ctx, list[1].ID); !errors.Is(err, images.ErrInUse) {
		t.Errorf("a child in use: %v", err)
	}
	if diff := cmp.Diff(before, stored(t, s)); diff != "" {
		t.Errorf("something has changed (-before +after):\n%s", diff)
	}
	r.Release(tmpl)

	must(t, other.Snapshots.RemoveRebased(ctx, list[1].ID))
	got, err := other.Snapshots.Get(list[2].ID)
	must(t, err)
	if got.Parent != "" || !got.Full || got.Name != "three" || got.Base != nil {
		t.Errorf("rebased: %+v", got.Snapshot)
	}
	must(t, other.Snapshots.Verify(ctx, got.ID))
	newRanch(t, reopen(t, s)).is(list[2].Snapshot, list[2].memory, list[2].disk, "three")
	if _, err := r.Snapshots.Get(list[1].ID); !errors.Is(err, images.ErrNoSnapshot) {
		t.Errorf("the removed parent: %v", err)
	}
	for _, i := range []int{0, 2, 3} {
		must(t, r.Snapshots.Remove(ctx, list[i].ID))
	}
	if left := stored(t, s); len(left) > 0 || len(files(t, s, "snapshots/flat")) > 0 {
		t.Errorf("left: %v, %v", left, files(t, s, "snapshots/flat"))
	}
	if err := r.Snapshots.Remove(ctx, list[0].ID); !errors.Is(err, images.ErrNoSnapshot) {
		t.Errorf("again: %v", err)
	}
}

// One that cannot be read can be removed, and keeps all those to which it may be the difference.
func TestSnapshotUnreadable(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	list := r.line()
	flip(t, filepath.Join(s.Dir(), "snapshots", "kept", list[2].ID, "paddock-snapshot.json"), 20)
	found, err := r.Snapshots.List()
	if err == nil || len(found) != 3 {
		t.Errorf("%d are listed: %v", len(found), err)
	}
	if err := r.Snapshots.Remove(t.Context(), list[0].ID); err == nil || errors.Is(err, images.ErrHasChildren) {
		t.Errorf("another: %v", err)
	}
	if _, err := r.Snapshots.Collect(t.Context(), images.Policy{Keep: 1}); err == nil {
		t.Error("snapshots are collected")
	}
	must(t, r.Snapshots.Remove(t.Context(), list[2].ID))
	must(t, r.Snapshots.Remove(t.Context(), list[1].ID))
	must(t, r.Snapshots.Remove(t.Context(), list[0].ID))
}

func TestSnapshotPolicy(t *testing.T) {
	// The snapshots: a → b → c, and d, e that are whole; b has a tag.
	for name, tt := range map[string]struct {
		policy images.Policy
		open   string // in use
		want   string // that stay
	}{
		"nothing is asked for":    {images.Policy{}, "", "abcde"},
		"the newest":              {images.Policy{Keep: 1}, "", "e"},
		"ancestors stay":          {images.Policy{Keep: 3}, "", "abcde"},
		"tagged":                  {images.Policy{Keep: 1, KeepTagged: true}, "", "abe"},
		"age":                     {images.Policy{MaxAge: time.Nanosecond}, "", ""},
		"age, tagged":             {images.Policy{MaxAge: time.Nanosecond, KeepTagged: true}, "", "ab"},
		"young":                   {images.Policy{MaxAge: time.Hour}, "", "abcde"},
		"in use, with ancestors":  {images.Policy{MaxAge: time.Nanosecond}, "c", "abc"},
		"size: none fits":         {images.Policy{MaxBytes: 1}, "", ""},
		"size: all fit":           {images.Policy{MaxBytes: 1 << 40}, "", "abcde"},
		"size: old ones are less": {images.Policy{MaxBytes: 60 << 10}, "", "abc"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRanch(t, shop(t))
			m := r.machine("x")
			last := ""
			for i, name := range []string{"a", "b", "c", "d", "e"} {
				m.live(name, 2)
				q := jobs.SnapshotRequest{Name: name}
				if i > 2 {
					q.Parent = jobs.ParentNone
					for i := range m.memory { // so that it takes room
						m.memory[i] |= 1
					}
				}
				if name == "b" {
					q.Tags = []string{"keep"}
				}
				last = r.keep(m, last, q).ID
			}
			if tt.open != "" {
				_, _, err := r.Template(t.Context(), "snapshot:a/"+tt.open, jobs.Shape{})
				must(t, err)
			}
			doomed, err := r.Snapshots.Doomed(t.Context(), tt.policy)
			must(t, err)
			removed, err := r.Snapshots.Collect(t.Context(), tt.policy)
			must(t, err)
			if len(doomed) != len(removed) {
				t.Errorf("%d were to go, %d went", len(doomed), len(removed))
			}
			left, err := r.Snapshots.List()
			must(t, err)
			var names string
			for _, s := range left {
				names += s.Name
				must(t, r.Snapshots.Verify(t.Context(), s.ID))
			}
			if names != tt.want {
				t.Errorf("%s stay, want %s", names, tt.want)
			}
		})
	}
}

// What the ancestors take that stay for a child counts as what the child takes.
func TestSnapshotPolicyCountsAncestors(t *testing.T) {
	r := newRanch(t, shop(t))
	m := r.machine("x")
	for i := range m.memory { // so that one that is whole takes room
		m.memory[i] |= 1
	}
	parent := r.keep(m, "", jobs.SnapshotRequest{Name: "parent", Parent: jobs.ParentNone})
	other := r.keep(m, "", jobs.SnapshotRequest{Name: "other", Parent: jobs.ParentNone})
	m.live("child", 2)
	child := r.keep(m, "", jobs.SnapshotRequest{Name: "child", Parent: parent.ID})
	most := parent.StoredBytes + other.StoredBytes + child.StoredBytes
	for _, tt := range []struct {
		most int64
		want []string
	}{{most, []string{"parent", "other", "child"}}, {most - 1, []string{"parent", "child"}}, {parent.StoredBytes + child.StoredBytes - 1, []string{"parent"}}, {1, nil}} {
		_, err := r.Snapshots.Collect(t.Context(), images.Policy{MaxBytes: tt.most})
		must(t, err)
		left, err := r.Snapshots.List()
		must(t, err)
		var names []string
		for _, s := range left {
			names = append(names, s.Name)
		}
		if diff := cmp.Diff(tt.want, names); diff != "" {
			t.Errorf("in %d bytes of %d (-want +got):\n%s", tt.most, most, diff)
		}
	}
}

// What is corrupt costs the snapshots that depend on it, and no machine's state that could still be kept: neither another tenant's, nor that of the
// machine of which it was.
func TestSnapshotBesideCorruptOnes(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	m := r.machine("x")
	m.live("first", 0)
	first := r.keep(m, "", jobs.SnapshotRequest{Name: "first"})
	m.live("second", 2)
	for name, harm := range map[string]func() (back func()){
		"manifest": func() func() {
			return flip(t, filepath.Join(s.Dir(), "snapshots", "kept", first.ID, "paddock-snapshot.json"), 20)
		},
		"memory": func() func() {
			return flip(t, filepath.Join(s.Dir(), "snapshots", "kept", first.ID, "memory"), 100)
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer harm()()
			r := newRanch(t, reopen(t, s))
			for _, parent := range []string{jobs.ParentAuto, jobs.ParentNone} {
				again := r.keep(m, first.ID, jobs.SnapshotRequest{Name: name + "-" + parent, Parent: parent})
				if again.Parent != "" {
					t.Errorf("%s: its parent is the corrupt one", parent)
				}
				r.is(again, m.memory, m.disk, m.devices)
			}
			if _, err := r.Snapshot(t.Context(), m, m.tmpl, jobs.SnapshotOrigin{Tenant: "a"}, jobs.SnapshotRequest{Parent: first.ID}); err == nil {
				t.Error("it is the difference to the corrupt one, which was asked for")
			}
		})
	}
	third := r.keep(m, first.ID, jobs.SnapshotRequest{Name: "third"})
	if third.Parent != first.ID {
		t.Errorf("when all is well: %+v", third)
	}
}

// A file that snapshots share, and that has become corrupt, is put right from the image that was built anew because of it.
func TestSnapshotMendsParts(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	old := r.keep(r.machine("x"), "", jobs.SnapshotRequest{Name: "old"})
	img, err := s.Get("x")
	must(t, err)
	flip(t, img.Scratch, 3*4096) // the snapshots' too: it is a link
	if _, _, err := newRanch(t, reopen(t, s)).Template(t.Context(), old.Image, jobs.Shape{}); err == nil {
		t.Fatal("the scratch disk is not the snapshot's")
	}
	publish(t, s, "x", "1")
	r = newRanch(t, reopen(t, s))
	m := r.machine("x")
	m.live("new", 0)
	made := r.keep(m, "", jobs.SnapshotRequest{Name: "new"})
	r.is(made, m.memory, m.disk, m.devices)
	must(t, r.Snapshots.Verify(t.Context(), old.ID))
	if left := files(t, s, "snapshots/parts"); len(left) != 3 {
		t.Errorf("parts: %v", left)
	}
	here, err := os.Stat(img.Scratch)
	must(t, err)
	part, err := os.Stat(filepath.Join(s.Dir(), "snapshots", "parts", img.Manifest.Scratch.SHA256))
	must(t, err)
	if !os.SameFile(here, part) {
		t.Error("it is a copy, where a link would do")
	}
}

// A snapshot's template is made while nobody holds the store: what a build sweeps meanwhile is none of it.
func TestSnapshotNeedsNothingThatIsSwept(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	m := r.machine("x")
	snap := r.keep(m, "", jobs.SnapshotRequest{Name: "kept"})
	must(t, os.Remove(filepath.Join(s.Dir(), "tmp")))
	r.is(snap, m.memory, m.disk, m.devices)
	if got := files(t, s, "snapshots/flat"); len(got) != 1 {
		t.Errorf("cached: %v", got)
	}
}

// Whoever opens a snapshot while others are made, removed and collected gets the right one or none.
func TestSnapshotRaces(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	base := r.machine("x")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // two seconds where nothing else is done
	defer cancel()
	var made, opened, missed, collected atomic.Int64
	var workers, ready sync.WaitGroup
	stop := make(chan struct{})
	ready.Add(3) // who open and collect, however late they come
	for range 2 {
		workers.Go(func() {
			n, err := reopen(t, s).Snapshots()
			if err != nil {
				t.Error(err)
				return
			}
			ready.Wait()
			last := ""
			for i := range 12 {
				m := &living{tmpl: base.tmpl, memory: bytes.Clone(base.memory), disk: bytes.Clone(base.disk)}
				m.live(fmt.Sprint("content ", i), i%3)
				q := jobs.SnapshotRequest{}
				if i%3 == 0 {
					q.Parent = jobs.ParentNone
				}
				snap, err := n.Create(ctx, m, m.tmpl, caps, jobs.SnapshotOrigin{Tenant: "a", Last: last}, q)
				if errors.Is(err, images.ErrNoSnapshot) { // the parent has been collected
					last = ""
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				last = snap.ID
				made.Add(1)
			}
		})
	}
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			n, err := reopen(t, s).Snapshots()
			ready.Done()
			if err != nil {
				t.Error(err)
				return
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				list, err := n.List()
				if err != nil {
					t.Error(err)
				}
				for _, snap := range list {
					tmpl, release, err := n.Open(ctx, snap.ID, "fake", caps)
					if errors.Is(err, images.ErrNoSnapshot) {
						missed.Add(1)
						continue
					}
					if err != nil {
						t.Error(err)
						continue
					}
					m, err := clone(tmpl)
					state, serr := os.ReadFile(filepath.Join(tmpl.Dir, "state"))
					if err != nil || serr != nil || !bytes.Contains(m.memory, state) || !bytes.Contains(m.disk, state) {
						t.Errorf("%s: %v, %v", snap.ID, err, serr)
					}
					release()
					opened.Add(1)
				}
			}
		})
	}
	others.Go(func() {
		n, err := reopen(t, s).Snapshots()
		ready.Done()
		if err != nil {
			t.Error(err)
			return
		}
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			gone, err := n.Collect(ctx, images.Policy{Keep: 3})
			if err != nil {
				t.Error(err)
			}
			collected.Add(int64(len(gone)))
		}
	})
	workers.Wait()
	for made.Load() >= 5 && (opened.Load() == 0 || collected.Load() == 0) && !t.Failed() && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond) // there is something for both
	}
	close(stop)
	others.Wait()
	if made.Load() < 5 || opened.Load() == 0 || collected.Load() == 0 {
		t.Errorf("%d were made, %d opened, %d collected: nothing has raced", made.Load(), opened.Load(), collected.Load())
	}
	t.Logf("%d made, %d opened, %d gone when they were to be opened, %d collected", made.Load(), opened.Load(), missed.Load(), collected.Load())
	if left, _ := filepath.Glob(filepath.Join(s.Dir(), "snapshots", "*", "*.tmp")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// dyingSnapshot is a process that is killed in the middle of making a snapshot.
func dyingSnapshot(dir string) {
	s, err := images.Open(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	n, err := s.Snapshots()
	if err != nil {
		fmt.Println(err)
		return
	}
	h := &images.Host{Store: s, Driver: newDriver(), Caps: caps, Snapshots: n}
	tmpl, _, err := h.Template(context.Background(), "x", jobs.Shape{})
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := clone(tmpl)
	if err != nil {
		fmt.Println(err)
		return
	}
	m.during = func(string) error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	_, err = h.Snapshot(context.Background(), m, tmpl, jobs.SnapshotOrigin{Tenant: "a"}, jobs.SnapshotRequest{Name: "never"})
	fmt.Println(err)
}

func TestSnapshotCrash(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	r.machine("x") // the template is there
	cmd := exec.CommandContext(t.Context(), os.Args[0], "snapshot", s.Dir())
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%v: %s", err, out)
	}
	left, err := filepath.Glob(filepath.Join(s.Dir(), "snapshots", "kept", "*"))
	must(t, err)
	if len(left) != 1 {
		t.Fatalf("it left %v", left)
	}
	fresh := newRanch(t, reopen(t, s))
	if list, err := fresh.Snapshots.List(); err != nil || len(list) > 0 {
		t.Errorf("%v are listed: %v", list, err)
	}
	if _, err := fresh.Snapshots.Find("never"); !errors.Is(err, images.ErrNoSnapshot) {
		t.Errorf("it is found: %v", err)
	}
	// One that was half removed does not count either.
	gone := filepath.Join(s.Dir(), "snapshots", "kept", jobs.NewID()+".rm")
	must(t, os.Mkdir(gone, 0o755))
	m := fresh.machine("x")
	m.live("after", 1)
	after := fresh.keep(m, "", jobs.SnapshotRequest{Name: "never"})
	if got := files(t, s, "snapshots/kept"); !slices.Equal(got, []string{after.ID}) {
		t.Errorf("left: %v", got)
	}
	fresh.is(after, m.memory, m.disk, "after")
}

// A checkpoint that fails leaves nothing.
func TestSnapshotFails(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	m := r.machine("x")
	full := errors.New("disk full")
	m.during = func(string) error { return full }
	if _, err := r.Snapshot(t.Context(), m, m.tmpl, jobs.SnapshotOrigin{Tenant: "a"}, jobs.SnapshotRequest{}); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if got := files(t, s, "snapshots/kept"); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
	_, err := r.Snapshots.Collect(t.Context(), images.Policy{})
	must(t, err)
	if left := stored(t, s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Nothing of snapshots that come and go stays: no file, and nothing in the memory of a process that has used them, whoever removes them.
func TestSnapshotsThatAreGone(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	list := r.line()
	for _, one := range list {
		tmpl, _, err := r.Template(t.Context(), one.Image, jobs.Shape{})
		must(t, err)
		r.Release(tmpl)
	}
	if r.Snapshots.Verified() == 0 {
		t.Error("nothing is remembered of the files of snapshots that are there")
	}
	stays, gone := list[0], list[1:]
	another := newRanch(t, reopen(t, s)) // a process
	for _, one := range slices.Backward(gone) {
		must(t, another.Snapshots.Remove(t.Context(), one.ID))
		if name := "snapshot-" + one.ID; slices.Contains(files(t, s, "locks"), name) {
			t.Errorf("left: the lock %s", name)
		}
	}
	had := r.Snapshots.Verified()
	then := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(filepath.Join(s.Dir(), "snapshots", "kept"), then, then)) // else a list is believed later only
	r.Offered()
	fresh := newRanch(t, reopen(t, s))
	tmpl, _, err := fresh.Template(t.Context(), stays.Image, jobs.Shape{})
	must(t, err)
	fresh.Release(tmpl)
	if now, want := r.Snapshots.Verified(), fresh.Snapshots.Verified(); now != want {
		t.Errorf("of %d files it is remembered that they were right, and there are %d that somebody has read; before there were %d", now, want, had)
	}
}

// A snapshot whose parts cannot be made durable is none: not one that is told to have failed, and is there.
func TestSnapshotWithoutDurableParts(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	m := r.machine("x")
	parts := filepath.Join(s.Dir(), "snapshots", "parts")
	m.then = func() error { return os.Rename(parts, parts+".away") } // nothing but syncing it needs it from here on
	_, err := r.Snapshot(t.Context(), m, m.tmpl, jobs.SnapshotOrigin{Tenant: "a"}, jobs.SnapshotRequest{Name: "x"})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if got := files(t, s, "snapshots/kept"); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
	m.then = nil
	must(t, os.Rename(parts+".away", parts))
	again := r.keep(m, "", jobs.SnapshotRequest{Name: "x"})
	r.is(again, m.memory, m.disk, m.devices)
}

// A line has 64 ancestors and no more; the last of it is restored.
func TestSnapshotLongLine(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	m := r.machine("x")
	var last jobs.Snapshot
	for range 65 {
		last = r.keep(m, last.ID, jobs.SnapshotRequest{})
	}
	m.live("the last", 2)
	_, err := r.Snapshot(t.Context(), m, m.tmpl, jobs.SnapshotOrigin{Tenant: "a", Last: last.ID}, jobs.SnapshotRequest{})
	if err == nil || !strings.Contains(err.Error(), "64 ancestors") {
		t.Errorf("one more: %v", err)
	}
	whole := r.keep(m, last.ID, jobs.SnapshotRequest{Parent: jobs.ParentNone})
	r.is(whole, m.memory, m.disk, m.devices)
	r.is(last, born(t, m.tmpl).memory, born(t, m.tmpl).disk, "as cloned")
}

func TestSnapshotRefusals(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	list := r.line()
	m := r.machine("x")
	publish(t, s, "y", "1")
	y := r.machine("y")
	snap := func(m vmm.Machine, tmpl vmm.Template, tenant string, q jobs.SnapshotRequest) error {
		_, err := r.Snapshot(t.Context(), m, tmpl, jobs.SnapshotOrigin{Tenant: tenant}, q)
		return err
	}
	plain, err := r.Driver.Boot(t.Context(), m.tmpl.Boot, vmm.Attach{})
	must(t, err)
	defer plain.Close()
	for name, tt := range map[string]struct {
		err  error
		want jobs.Code
	}{
		"a name twice":            {snap(m, m.tmpl, "a", jobs.SnapshotRequest{Name: "one"}), jobs.CodeConflict},
		"a parent that is not":    {snap(m, m.tmpl, "a", jobs.SnapshotRequest{Parent: jobs.NewID()}), jobs.CodeNotFound},
		"another tenant's parent": {snap(m, m.tmpl, "b", jobs.SnapshotRequest{Parent: list[0].ID}), jobs.CodeInvalid},
		"another image's parent":  {snap(y, y.tmpl, "a", jobs.SnapshotRequest{Parent: list[0].ID}), jobs.CodeInvalid},
		"a machine that cannot":   {snap(plain, m.tmpl, "a", jobs.SnapshotRequest{}), jobs.CodeUnsupported},
		"a host without a store": {func() error {
			h := *m
			r := ranch{&images.Host{Store: s}, t}
			_, err := r.Snapshot(t.Context(), &h, h.tmpl, jobs.SnapshotOrigin{}, jobs.SnapshotRequest{})
			return err
		}(), jobs.CodeUnsupported},
		"another tenant's own name": {snap(m, m.tmpl, "b", jobs.SnapshotRequest{Name: "one"}), ""},
	} {
		e, _ := errors.AsType[*jobs.Error](tt.err)
		if tt.want == "" && tt.err != nil || tt.want != "" && (e == nil || e.Code != tt.want) {
			t.Errorf("%s: %v", name, tt.err)
		}
	}
	if _, err := r.Snapshots.Find("one"); err == nil || !strings.Contains(err.Error(), "2 snapshots") {
		t.Errorf("a name of two: %v", err)
	}
	for _, ref := range []string{"a/one", "snapshot:a/one", list[0].ID, "two", list[1].ID} {
		if _, err := r.Snapshots.Find(ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}

	// Restoring it elsewhere, or in another shape.
	for name, tt := range map[string]struct {
		change func(h *images.Host)
		shape  jobs.Shape
		want   string
	}{
		"driver":          {func(h *images.Host) { d := newDriver(); d.name = "other"; h.Driver = d }, jobs.Shape{}, "driver"},
		"version":         {func(h *images.Host) { h.Caps.Version = "2" }, jobs.Shape{}, "hypervisor"},
		"accelerator":     {func(h *images.Host) { h.Caps.Accel = "kvm" }, jobs.Shape{}, "hypervisor"},
		"processor":       {func(h *images.Host) { h.Caps.CPU = "host" }, jobs.Shape{}, "hypervisor"},
		"memory":          {func(*images.Host) {}, jobs.Shape{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}, "its own size"},
		"vcpus":           {func(*images.Host) {}, jobs.Shape{Resources: jobs.Resources{VCPUs: 2}}, "its own size"},
		"headroom":        {func(*images.Host) {}, jobs.Shape{Headroom: jobs.Resources{MemoryMiB: 256}}, "headroom"},
		"a network":       {func(*images.Host) {}, jobs.Shape{NIC: true}, "no network card"},
		"its own":         {func(*images.Host) {}, jobs.Shape{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 128}}, ""},
		"what it is then": {func(*images.Host) {}, jobs.Shape{}, ""},
	} {
		h := newRanch(t, reopen(t, s))
		tt.change(h.Host)
		tmpl, _, err := h.Template(t.Context(), list[0].Image, tt.shape)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v", name, err)
		}
		offered := slices.ContainsFunc(h.Offered(), func(o jobs.OfferedImage) bool { return o.Name == list[0].Image && o.Snapshot && o.Digest == list[0].ID })
		_, offer := h.Offer(list[0].Image)
		if elsewhere := tt.want == "driver" || tt.want == "hypervisor"; offered == elsewhere || offer == elsewhere {
			t.Errorf("%s: offered is %t", name, offered)
		}
		h.Release(tmpl)
	}
}

// With KVM a guest has seen the host's processor, as its kernel lets it: a snapshot is restored where both are what they were.
func TestSnapshotOfAnotherHost(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	r.Caps.Accel = "kvm"
	snap := r.keep(r.machine("x"), "", jobs.SnapshotRequest{Name: "here"})
	open := func() error {
		_, release, err := r.Snapshots.Open(t.Context(), snap.ID, "fake", r.Caps)
		if err == nil {
			release()
		}
		return err
	}
	must(t, open())
	refused := func(t *testing.T, err error) {
		t.Helper()
		if !errors.Is(err, images.ErrOtherHost) || !strings.Contains(err.Error(), "snapshot "+snap.ID+": ") || !strings.Contains(err.Error(), "host's kernel and processor: linux ") {
			t.Errorf("%v", err)
		}
	}

	t.Run("kernel", func(t *testing.T) {
		onThread(func() {
			before := release(t)
			const uname26 = 0x0020000 // UNAME26 of personality(2): the kernel says that it is a 2.6
			if _, _, errno := syscall.RawSyscall(syscall.SYS_PERSONALITY, uname26, 0, 0); errno != 0 {
				t.Errorf("personality: %v", errno)
				return
			}
			err := open()
			refused(t, err)
			if now := release(t); now == before || err != nil && (!strings.Contains(err.Error(), "linux "+before+" cpu ") || !strings.Contains(err.Error(), "here linux "+now+" cpu ")) {
				t.Errorf("linux %s, and here %s: %v", before, now, err)
			}
		})
	})

	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("another processor needs root")
		}
		t.Skip("SKIPPED: needs root: a snapshot of another processor is not tested")
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	must(t, err)
	for name, change := range map[string]struct {
		line, with string // of each processor
		other      bool
	}{
		"model":                   {"model name", "${0} of another kind", true},
		"a flag more":             {"flags", "${0} another", true},
		"as it is":                {"flags", "${0}", false},
		"another clock frequency": {"cpu MHz", "${0}1", false},
	} {
		t.Run(name, func(t *testing.T) {
			line := regexp.MustCompile("(?m)^" + change.line + "\t.*$")
			if !line.Match(cpuinfo) {
				t.Fatalf("no line %q in\n%s", change.line, cpuinfo)
			}
			other := filepath.Join(t.TempDir(), "cpuinfo")
			must(t, os.WriteFile(other, line.ReplaceAll(cpuinfo, []byte(change.with)), 0o644))
			onThread(func() {
				// Mounts of its own: only this thread has the other /proc/cpuinfo.
				if err := errors.Join(syscall.Unshare(syscall.CLONE_NEWNS), syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""),
					syscall.Mount(other, "/proc/cpuinfo", "", syscall.MS_BIND, "")); err != nil {
					t.Error(err)
					return
				}
				if err := open(); change.other {
					refused(t, err)
				} else if err != nil {
					t.Error(err)
				}
			})
		})
	}
	must(t, open())
}

// What a host is is looked up once for a heartbeat, and not for each snapshot: with many processors it takes milliseconds.
func TestHostIsReadOnceForAllSnapshots(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("a /proc/cpuinfo of its own needs root")
		}
		t.Skip("SKIPPED: needs root: how often /proc/cpuinfo is read is not tested")
	}
	r := newRanch(t, shop(t))
	r.Caps.Accel = "kvm"
	r.copies(r.keep(r.machine("x"), "", jobs.SnapshotRequest{Name: "first"}), "a", 20)
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	must(t, err)
	own := filepath.Join(t.TempDir(), "cpuinfo")
	must(t, os.WriteFile(own, cpuinfo, 0o644))
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	defer unix.Close(watch)
	offered := 0
	onThread(func() {
		if err := errors.Join(syscall.Unshare(syscall.CLONE_NEWNS), syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""),
			syscall.Mount(own, "/proc/cpuinfo", "", syscall.MS_BIND, "")); err != nil {
			t.Error(err)
			return
		}
		if _, err := unix.InotifyAddWatch(watch, own, unix.IN_OPEN|unix.IN_CLOSE_NOWRITE); err != nil {
			t.Error(err)
			return
		}
		offered = len(r.Offered())
	})
	b := make([]byte, 1<<16)
	n, err := unix.Read(watch, b)
	must(t, err)
	if reads := n / unix.SizeofInotifyEvent / 2; reads != 1 || offered != 22 {
		t.Errorf("%d images are offered, and /proc/cpuinfo was read %d times", offered, reads)
	}
}

// onThread calls f on a thread that ends with it: what f does to its thread is no other's.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		f()
	}()
	<-done
}

// release is the kernel's, as this thread sees it.
func release(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Error(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}

// copies keeps copies of a snapshot, with other ids and names, of a tenant: as if it had made so many, one after the other.
func (r ranch) copies(of jobs.Snapshot, tenant string, n int) (made []string) {
	r.t.Helper()
	kept := filepath.Join(r.Store.Dir(), "snapshots", "kept")
	b, err := os.ReadFile(filepath.Join(kept, of.ID, "paddock-snapshot.json"))
	must(r.t, err)
	var m map[string]any
	must(r.t, json.Unmarshal(b, &m))
	for range n {
		id := jobs.NewID()
		name := id + strings.Repeat("x", 63-len(id))
		m["id"], m["tenant"], m["name"], m["image"], m["created_at"] = id, tenant, name, jobs.SnapshotImage(tenant, name), time.Now().UTC()
		b, err := json.Marshal(m)
		must(r.t, err)
		must(r.t, os.Mkdir(filepath.Join(kept, id), 0o755))
		must(r.t, os.WriteFile(filepath.Join(kept, id, "paddock-snapshot.json"), b, 0o444))
		sum := fmt.Sprintf("%x  paddock-snapshot.json\n", sha256.Sum256(b))
		must(r.t, os.WriteFile(filepath.Join(kept, id, "paddock-snapshot.json.sha256"), []byte(sum), 0o444))
		made = append(made, jobs.SnapshotImage(tenant, name))
	}
	return made
}

// However many snapshots a tenant has, a heartbeat carries what the worker offers, and other tenants' are among that.
func TestSnapshotsOfferedFitIntoAHeartbeat(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	first := r.keep(r.machine("x"), "", jobs.SnapshotRequest{Name: "first"})
	few := r.copies(first, "few", 3)
	many := r.copies(first, strings.Repeat("m", 63), 4000)
	offered := r.Offered()
	b, err := json.Marshal(jobs.Beat{Worker: "w", Images: offered})
	must(t, err)
	if len(b) > 900<<10 {
		t.Errorf("the heartbeat has %d bytes: with 1 MiB no NATS server takes it by default", len(b))
	}
	there := map[string]bool{}
	for _, o := range offered {
		there[o.Name] = true
	}
	for _, image := range append(few, "x", first.Image, many[len(many)-1]) {
		if !there[image] {
			t.Errorf("%s is not offered", image)
		}
	}
	if there[many[0]] {
		t.Errorf("%s is offered, the oldest of %d", many[0], len(many))
	}
	if _, ok := r.Offer(many[0]); !ok {
		t.Errorf("a job that has %s already does not find it", many[0])
	}
}

func TestSnapshotStats(t *testing.T) {
	s := shop(t)
	r := newRanch(t, s)
	list := r.line()
	r.is(list[0].Snapshot, list[0].memory, list[0].disk, "one")
	r.is(list[0].Snapshot, list[0].memory, list[0].disk, "one")
	st, err := r.Snapshots.Stats(t.Context())
	must(t, err)
	if len(st.Images) != 1 || st.Images[0].Count != 4 || st.Images[0].Image != "x" {
		t.Fatalf("%+v", st)
	}
	i := st.Images[0]
	if i.Misses < 2 || i.Hits < 1 {
		t.Errorf("%d hits, %d misses", i.Hits, i.Misses)
	}
	if i.RealBytes == 0 || i.ApparentBytes <= i.RealBytes/2 || st.Total != i.Usage {
		t.Errorf("%+v", st)
	}
	if st.Parts.Count != 3 || st.Parts.SharedBytes == 0 || st.Parts.SharedBytes != st.Parts.RealBytes {
		t.Errorf("parts: %+v", st.Parts)
	}
	if st.Templates.Count != 1 || st.Flattened.Count == 0 {
		t.Errorf("%+v", st)
	}
}
