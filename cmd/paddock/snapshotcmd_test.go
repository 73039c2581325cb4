package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/paddockvm/paddock/guestagent"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/checkpoint"
	"github.com/paddockvm/paddock/vmm/inproc"
)

// keeping is a driver whose machines are of this process, and can be kept: their memory is a word.
type keeping struct{ *inproc.Driver }

func (keeping) Name() string { return "keeping" }

func (d keeping) Boot(ctx context.Context, b vmm.Boot, _ vmm.Attach) (vmm.Machine, error) {
	p, err := d.Prepare(ctx, vmm.Template{}, vmm.Attach{})
	if err != nil {
		return nil, err
	}
	m, err := p.Restore(ctx)
	if err != nil {
		return nil, err
	}
	return &kept{Machine: m, boot: b, memory: "template"}, nil
}

type kept struct {
	vmm.Machine
	boot   vmm.Boot
	memory string
}

func (m *kept) Snapshot(_ context.Context, dir string) (vmm.Template, error) {
	t := vmm.Template{Dir: dir, Driver: "keeping", Boot: m.boot}
	if err := m.Close(); err != nil {
		return t, err
	}
	return t, os.WriteFile(filepath.Join(dir, checkpoint.MemoryFile), m.content(), 0o444)
}

func (m *kept) content() []byte {
	return append(bytes.Repeat([]byte("same"), 64<<10), bytes.Repeat([]byte(m.memory), 1000)...)[:260<<10]
}

func (m *kept) Checkpoint(_ context.Context, dir string, base vmm.Template) (vmm.Checkpoint, error) {
	c := vmm.Checkpoint{Driver: "keeping", Boot: m.boot}
	old, err := os.Open(filepath.Join(base.Dir, checkpoint.MemoryFile))
	if err != nil {
		return c, err
	}
	defer old.Close()
	d, err := checkpoint.NewDelta(dir, checkpoint.MemoryFile, old, int64(len(m.content())))
	if err != nil {
		return c, err
	}
	defer d.Close()
	if err := d.Put(0, m.content()); err != nil {
		return c, err
	}
	c.MemoryBytes, err = d.Finish()
	return c, err
}

// snapshots makes snapshots of one machine, of the image base, each the difference to the one before: snapshots NAME…
func snapshots(ts *testscript.TestScript, neg bool, names []string) {
	if neg || len(names) == 0 {
		ts.Fatalf("usage: snapshots NAME…")
	}
	store, err := images.Open(ts.Getenv("PADDOCK_IMAGE_DIR"))
	ts.Check(err)
	n, err := store.Snapshots()
	ts.Check(err)
	img, err := store.Get("base")
	ts.Check(err)
	img.Manifest.Recipe.Warm = nil // there is no program in it
	_, err = store.Publish(img.Manifest)
	ts.Check(err)
	d := keeping{inproc.New(func(ctx context.Context, c net.Conn) { guestagent.InProcess(ctx, c) })}
	h := &images.Host{Store: store, Driver: d, Snapshots: n}
	ctx := context.Background()
	tmpl, _, err := h.Template(ctx, "base", jobs.Shape{})
	ts.Check(err)
	m := &kept{Machine: nameless{}, boot: tmpl.Boot}
	o := jobs.SnapshotOrigin{Tenant: "default", Job: jobs.NewID(), Worker: "w"}
	for _, name := range names {
		m.memory = name
		s, err := h.Snapshot(ctx, m, tmpl, o, jobs.SnapshotRequest{Name: name, Tags: []string{"of-" + name}})
		ts.Check(err)
		o.Last = s.ID
	}
}

// nameless is a machine of which nothing is asked but its id.
type nameless struct{ vmm.Machine }

func (nameless) ID() string { return "m-kept" }

func TestTree(t *testing.T) {
	s := func(id, parent string) jobs.Snapshot { return jobs.Snapshot{ID: id, Parent: parent} }
	var got string
	tree([]jobs.Snapshot{s("a", ""), s("b", "a"), s("c", ""), s("d", "b"), s("e", "a"), s("f", "gone")}, func(depth int, s jobs.Snapshot) {
		got += string(rune('0'+depth)) + s.ID + " "
	})
	if diff := cmp.Diff("0a 1b 2d 1e 0c 0f ", got); diff != "" {
		t.Error(diff)
	}
}

func TestOwnImage(t *testing.T) {
	for image, want := range map[string]string{
		"": "", "base": "base", "snapshot:x": "snapshot:me/x", "snapshot:you/x": "snapshot:you/x",
	} {
		if got := ownImage(image, "me"); got != want {
			t.Errorf("%q is %q, want %q", image, got, want)
		}
	}
}
