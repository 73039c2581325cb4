package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	agentclient "github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
)

// yard is a host of real machines with a store of its own, in this process: what workers do, without a job around it.
type yard struct {
	*images.Host
	t testing.TB
}

func newYard(t testing.TB) yard {
	t.Helper()
	d, err := qemu.New(qemu.Config{RunDir: t.TempDir(), Launcher: vmm.Direct{}})
	if err != nil {
		if os.Getenv("REQUIRE_QEMU") != "" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: no snapshot of a machine is tested here: ", err)
	}
	t.Cleanup(func() { ok(t, d.Close()) })
	caps, err := d.Probe(t.Context())
	ok(t, err)
	s := privateStore(t)
	n, err := s.Snapshots()
	ok(t, err)
	return yard{&images.Host{Store: s, Driver: d, Caps: caps, Snapshots: n}, t}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// privateStore has the cache's image "base" alone. Its files are copies: tests damage them.
func privateStore(t testing.TB) *images.Store {
	t.Helper()
	img, err := harness.Image(t.Context(), "base")
	if err != nil {
		if os.Getenv("REQUIRE_QEMU") != "" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: no snapshot of a machine is tested here (make test builds the image): ", err)
	}
	s, err := images.Open(t.TempDir())
	ok(t, err)
	for _, from := range []string{img.Kernel, img.Initrd, img.Root, img.Scratch} {
		ok(t, sparseCopy(from, filepath.Join(s.Dir(), "blobs", filepath.Base(from))))
	}
	_, err = s.Publish(img.Manifest)
	ok(t, err)
	return s
}

func sparseCopy(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := src.Read(buf)
		if bytes.Count(buf[:n], []byte{0}) < n {
			_, err = dst.Write(buf[:n])
		} else if n > 0 {
			_, err = dst.Seek(int64(n), io.SeekCurrent)
		}
		if errors.Is(err, io.EOF) || n == 0 {
			info, err := src.Stat()
			if err != nil {
				return err
			}
			return dst.Truncate(info.Size())
		}
		if err != nil {
			return err
		}
	}
}

// guest is a machine that has been introduced to its agent.
type guest struct {
	vmm.Machine
	*agentclient.Client
	t    testing.TB
	tmpl vmm.Template
}

func (g *guest) Close() error {
	_ = g.Client.Close()
	return g.Machine.Close()
}

// wake clones an image or a snapshot.
func (y yard) wake(image string) *guest {
	y.t.Helper()
	tmpl, _, err := y.Template(y.t.Context(), image, jobs.Shape{})
	ok(y.t, err)
	g, err := y.clone(tmpl)
	ok(y.t, err)
	y.t.Cleanup(func() { _ = g.Close() })
	return g
}

func (y yard) clone(tmpl vmm.Template) (*guest, error) {
	ctx, cancel := context.WithTimeout(y.t.Context(), time.Minute)
	defer cancel()
	p, err := y.Driver.Prepare(ctx, tmpl, vmm.Attach{})
	if err != nil {
		return nil, err
	}
	m, err := p.Restore(ctx)
	if err != nil {
		return nil, err
	}
	g := &guest{Machine: m, t: y.t, tmpl: tmpl}
	conn, err := m.DialGuest(ctx)
	if err == nil {
		g.Client, err = agentclient.Connect(ctx, conn)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	random := make([]byte, 96)
	_, _ = rand.Read(random) // never fails
	if _, err := g.Restore(ctx, wire.Restore{
		Epoch: random[:16], Entropy: random[16:80], MachineID: hex.EncodeToString(random[80:]), TimeUnixNS: time.Now().UnixNano(),
		Hostname: m.ID(), Scratch: tmpl.Boot.Scratch != "",
	}); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// sh runs a line as root and gives what it prints.
func (g *guest) sh(line string) string {
	g.t.Helper()
	out, err := g.try(g.t.Context(), line)
	ok(g.t, err)
	return out
}

func (g *guest) try(ctx context.Context, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	exit, err := g.Exec(ctx, wire.Exec{
		ID: hex.EncodeToString(randomID()), Argv: []string{"/bin/sh", "-c", line}, Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}, User: "root",
		Limits: wire.ExecLimits{OutputBytes: 1 << 20},
	}, agentclient.Streams{Stdout: &out, Stderr: &errs})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%q ended with %d: %s", line, exit.Code, errs.String())
	}
	return out.String(), err
}

func randomID() []byte {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return b
}

func (y yard) keep(g *guest, last, parent string) jobs.Snapshot {
	y.t.Helper()
	s, err := y.Snapshot(y.t.Context(), g.Machine, g.tmpl, jobs.SnapshotOrigin{Tenant: "a", Job: "j", Worker: "w", Last: last}, jobs.SnapshotRequest{Parent: parent})
	ok(y.t, err)
	y.t.Logf("snapshot: paused for %.1f ms, %d KiB of memory and %d of disk changed, %d KiB stored", s.PausedMS, s.MemoryBytes>>10, s.ScratchBytes>>10, s.StoredBytes>>10)
	return s
}

// look tells all that a clone has to have from its original.
const look = `cat /work/state /dev/shm/state /run/state; tool; sha256sum < /work/blob; ls /work; mount -t tmpfs | grep -c /mnt; cat /mnt/state`

func TestSnapshots(t *testing.T) {
	y := newYard(t)
	y.wake("base") // the template is there
	for name, test := range map[string]func(yard){
		"holds the machine":            yard.holdsTheMachine,
		"corruption is found":          yard.corruptionIsFound,
		"templates stay what they are": yard.templatesStay,
	} {
		t.Run(name, func(t *testing.T) { test(yard{y.Host, t}) })
	}
}

// A snapshot that was taken while a program wrote memory and disk holds exactly what the machine was then; and so do the child of it,
// the child of that, and the whole one.
func (y yard) holdsTheMachine() {
	t := y.t
	g := y.wake("base")
	g.sh(`printf '#!/bin/sh\necho installed\n' > /usr/local/bin/tool && chmod +x /usr/local/bin/tool
mkdir -p /mnt && mount -t tmpfs tmpfs /mnt
head -c 2000000 /dev/urandom > /work/blob`)
	set := func(g *guest, v string) string {
		g.sh(`for f in /work/state /dev/shm/state /run/state /mnt/state; do echo ` + v + ` > $f; done; head -c 100000 /dev/urandom >> /work/blob; sync`)
		return g.sh(look)
	}
	// While each is taken a program writes both, in files of its own.
	busy, stop := context.WithCancel(t.Context())
	var program sync.WaitGroup
	program.Go(func() {
		_, _ = g.try(busy, `cd /tmp; i=0; while :; do i=$((i+1)); echo $i > n; head -c 100000 /dev/urandom > /dev/shm/busy; cp /dev/shm/busy busy; done`)
	})
	type taken struct {
		jobs.Snapshot
		look string
	}
	var list []taken
	last := ""
	for _, v := range []string{"first", "second", "whole"} {
		parent := jobs.ParentAuto
		if v == "whole" {
			parent = jobs.ParentNone
		}
		saw := set(g, v)
		s := y.keep(g, last, parent)
		last = s.ID
		list = append(list, taken{s, saw})
	}
	if list[1].Parent != list[0].ID || !list[2].Full || list[1].StoredBytes > list[2].StoredBytes/4 {
		t.Errorf("%+v", list)
	}
	if got := g.sh(look); got != list[2].look {
		t.Errorf("the machine has changed (-before +after):\n%s", cmp.Diff(list[2].look, got))
	}
	stop()
	program.Wait()

	// The child of the child is a snapshot of a clone.
	c := y.wake(list[1].Image)
	saw := set(c, "third")
	list = append(list, taken{y.keep(c, "", jobs.ParentAuto), saw})
	if list[3].Parent != list[1].ID {
		t.Errorf("%+v", list[3])
	}
	for i, s := range list {
		c := y.wake(s.Image)
		if got := c.sh(look); got != s.look {
			t.Errorf("snapshot %d is restored otherwise (-then +now):\n%s", i, cmp.Diff(s.look, got))
		}
		// A whole file system, where a program wrote until the end; of the old life no program runs.
		if got := c.sh(`cat /tmp/n > /dev/null; ps -eo args | grep -c '[u]random' || true`); strings.TrimSpace(got) != "0" {
			t.Errorf("snapshot %d: programs of the old life: %s", i, got)
		}
		ok(t, c.Close())
	}

	// Clones of one snapshot, and the machine itself, have neither identity nor randomness in common.
	seen := map[string]string{}
	for i := range 4 {
		c := g
		if i > 0 {
			c = y.wake(list[0].Image)
		}
		for j, line := range strings.Fields(c.sh(`cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname; head -c 16 /dev/urandom | sha256sum | cut -c1-20; cat /proc/sys/kernel/random/uuid`)) {
			key := fmt.Sprint(j, line)
			if was := seen[key]; was != "" || len(line) < 16 {
				t.Errorf("%q is of %s and of %s", line, was, c.ID())
			}
			seen[key] = c.ID()
		}
	}
}

// A byte that flips in any file of a snapshot or of its ancestors is found, and named, before a machine starts.
func (y yard) corruptionIsFound() {
	t := y.t
	g := y.wake("base")
	g.sh("echo one > /work/one; sync")
	parent := y.keep(g, "", jobs.ParentAuto)
	g.sh("echo two > /work/two; sync")
	child := y.keep(g, parent.ID, jobs.ParentAuto)
	ok(t, g.Close())
	y.wake(child.Image).sh("cat /work/one /work/two")

	for _, dir := range []string{"kept/" + parent.ID, "kept/" + child.ID, "parts"} {
		entries, err := os.ReadDir(filepath.Join(y.Store.Dir(), "snapshots", dir))
		ok(t, err)
		for _, e := range entries {
			path := filepath.Join(y.Store.Dir(), "snapshots", dir, e.Name())
			flipByte(t, path)
			fresh := y.reopen()
			_, _, err := fresh.Template(t.Context(), child.Image, jobs.Shape{})
			if err == nil || !strings.Contains(err.Error(), path) && !strings.Contains(err.Error(), e.Name()) {
				t.Errorf("%s: %v", path, err)
			}
			flipByte(t, path)
		}
	}
	flipByte(t, filepath.Join(y.Store.Dir(), "snapshots", "flat", child.ID, "memory")) // a cache: it is made anew
	y = y.reopen()
	ok(t, y.Snapshots.Verify(t.Context(), child.ID))
	y.wake(child.Image).sh("cat /work/one /work/two")
}

// reopen gives the yard as another process sees it: nothing is known to be whole.
func (y yard) reopen() yard {
	y.t.Helper()
	s, err := images.Open(y.Store.Dir())
	ok(y.t, err)
	n, err := s.Snapshots()
	ok(y.t, err)
	return yard{&images.Host{Store: s, Driver: y.Driver, Caps: y.Caps, Snapshots: n}, y.t}
}

// flipByte changes a byte in a file's middle, or changes it back.
func flipByte(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	info, err := f.Stat()
	ok(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, info.Size()/2)
	ok(t, err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b, info.Size()/2)
	ok(t, err)
}

// The files of a template are what they were after a hundred clones have run that wrote memory and disk; those of a snapshot too.
func (y yard) templatesStay() {
	t := y.t
	g := y.wake("base")
	g.sh("head -c 4000000 /dev/urandom > /dev/shm/x; echo kept > /work/kept; sync")
	snapshot := y.keep(g, "", jobs.ParentAuto)
	ok(t, g.Close())
	for image, half := range map[string]int{"base": 50, snapshot.Image: 10} {
		tmpl, _, err := y.Template(t.Context(), image, jobs.Shape{})
		ok(t, err)
		before := digests(t, tmpl)
		var clones sync.WaitGroup
		for range 2 {
			clones.Go(func() {
				for range half {
					g, err := y.clone(tmpl)
					if err == nil {
						_, err = g.try(t.Context(), "head -c 300000 /dev/urandom > /dev/shm/y; cp /dev/shm/y /work/y; rm -rf /work/kept; sync")
						err = errors.Join(err, g.Close())
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		clones.Wait()
		if diff := cmp.Diff(before, digests(t, tmpl)); diff != "" {
			t.Errorf("%s has changed (-before +after):\n%s", image, diff)
		}
	}
}

// digests are those of all files that a clone is made of.
func digests(t testing.TB, tmpl vmm.Template) map[string]images.Part {
	t.Helper()
	found := map[string]images.Part{}
	entries, err := os.ReadDir(tmpl.Dir)
	ok(t, err)
	paths := []string{tmpl.Boot.Root, tmpl.Boot.Scratch}
	for _, e := range entries {
		paths = append(paths, filepath.Join(tmpl.Dir, e.Name()))
	}
	for _, p := range paths {
		found[p], err = images.SparsePartOf(p)
		ok(t, err)
	}
	return found
}

// A job's tenant has a snapshot made of it while it runs, and runs others in it; nobody else does.
func TestSnapshotOfJob(t *testing.T) {
	c := up(t)
	removeTagged(t, "e2e-test") // those of the run before: this one's are in use until the worker ends
	id := submit(t, c, jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: "echo before > /work/x; echo ready; sleep 600"}}, Limits: jobs.Limits{WallMS: 600_000}})
	untilOutput(t, c, id)
	name := "e2e-" + id[len(id)-12:]
	s, err := c.Snapshot(t.Context(), id, jobs.SnapshotRequest{Name: name, Tags: []string{"e2e-test"}})
	ok(t, err)
	t.Logf("paused for %.1f ms", s.PausedMS)
	if s.Image != "snapshot:default/"+name || s.Job != id || s.Of != "base" || s.Tenant != "default" {
		t.Errorf("%+v", s)
	}
	if _, err := c.Snapshot(t.Context(), id, jobs.SnapshotRequest{Name: name}); code(err) != jobs.CodeConflict {
		t.Errorf("the name again: %v", err)
	}
	if _, err := c.Snapshot(t.Context(), id, jobs.SnapshotRequest{Name: "No"}); code(err) != jobs.CodeInvalid {
		t.Errorf("a name that is none: %v", err)
	}
	child, err := c.Snapshot(t.Context(), id, jobs.SnapshotRequest{Tags: []string{"e2e-test"}})
	ok(t, err)
	if child.Parent != s.ID {
		t.Errorf("%+v", child)
	}
	_, err = c.Cancel(t.Context(), id)
	ok(t, err)
	wait(t, c, id)
	if _, err := c.Snapshot(t.Context(), id, jobs.SnapshotRequest{}); code(err) != jobs.CodeUnavailable {
		t.Errorf("of a job that has ended: %v", err)
	}

	// The dispatcher hears of it by the worker's next beat.
	in := func(image string) jobs.Spec {
		return jobs.Spec{Image: image, Steps: []jobs.Step{{Shell: "cat /work/x"}}}
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		spec := in(child.Image)
		r, err := c.Submit(t.Context(), &spec)
		if err == nil {
			id = r.Job.ID
			break
		}
		if code(err) != jobs.CodeInvalid || time.Now().After(end) {
			t.Fatal(err)
		}
	}
	for range 2 {
		r := wait(t, c, id)
		wantSuccess(t, r)
		if got := stdout(t, r); got != "before\n" || r.Template != child.ID {
			t.Errorf("%q in %s", got, r.Template)
		}
		id = submit(t, c, in(s.Image))
		child = s
	}
	wait(t, c, id)
	for name, change := range map[string]func(*jobs.Spec){
		"resources.memory_mib": func(s *jobs.Spec) { s.Resources.MemoryMiB = 512 },
		"resources.vcpus":      func(s *jobs.Spec) { s.Resources.VCPUs = 2 },
	} {
		spec := in(s.Image)
		change(&spec)
		if _, err := c.Submit(t.Context(), &spec); code(err) != jobs.CodeInvalid || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	spec := in("snapshot:other/" + name)
	if _, err := c.Submit(t.Context(), &spec); code(err) != jobs.CodeInvalid {
		t.Errorf("another tenant's: %v", err)
	}
}

// removeTagged removes snapshots from the cache that nobody uses.
func removeTagged(t *testing.T, tag string) {
	t.Helper()
	cache, err := harness.Cache()
	ok(t, err)
	s, err := images.Open(filepath.Join(cache, "images"))
	ok(t, err)
	n, err := s.Snapshots()
	ok(t, err)
	list, err := n.List()
	ok(t, err)
	for i := len(list) - 1; i >= 0; i-- { // children first
		if !slices.Contains(list[i].Tags, tag) {
			continue
		}
		if err := n.Remove(t.Context(), list[i].ID); err != nil && !errors.Is(err, images.ErrInUse) && !errors.Is(err, images.ErrHasChildren) {
			t.Error(err)
		}
	}
}

func code(err error) jobs.Code {
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		return e.Code
	}
	return ""
}
