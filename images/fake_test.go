package images_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/guestagent"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/test/leak"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/inproc"
)

// This program is the tests, and the other processes that use their stores.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 {
		switch os.Args[1] {
		case "template":
			templateProcess(os.Args[2])
			return
		case "build":
			dyingBuild(os.Args[2])
			return
		case "snapshot":
			dyingSnapshot(os.Args[2])
			return
		}
	}
	leak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB) *images.Store {
	t.Helper()
	s, err := images.Open(t.TempDir())
	must(t, err)
	return s
}

// adopt puts content into the store.
func adopt(s *images.Store, content string, how func(*images.Store, string) (images.Part, error)) (images.Part, error) {
	dir, err := s.Temp("part-")
	if err != nil {
		return images.Part{}, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "part")
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		return images.Part{}, err
	}
	return how(s, file)
}

// manifest is an image whose parts are made of small files. All images have their kernel and scratch disk in common.
func manifest(s *images.Store, name, version string) (images.Manifest, error) {
	m := images.Manifest{Recipe: images.Recipe{
		Name: name, Warm: []images.Warm{{Cmd: "true"}}, Resources: images.Resources{VCPUs: 1, MemoryMiB: 128, ScratchMiB: 16},
	}}
	for _, p := range []struct {
		part    *images.Part
		content string
		how     func(*images.Store, string) (images.Part, error)
	}{
		{&m.Kernel, "the kernel", (*images.Store).Adopt}, {&m.Initrd, "initrd of " + name + version, (*images.Store).Adopt},
		{&m.Root, "root of " + name + version, (*images.Store).Adopt},
		{&m.Scratch, strings.Repeat("\x00", 3*4096) + "scratch" + strings.Repeat("\x00", 4096), (*images.Store).AdoptSparse},
	} {
		var err error
		if *p.part, err = adopt(s, p.content, p.how); err != nil {
			return m, err
		}
	}
	return m, nil
}

func publish(t testing.TB, s *images.Store, name, version string) images.Image {
	t.Helper()
	m, err := manifest(s, name, version)
	must(t, err)
	img, err := s.Publish(m)
	must(t, err)
	return img
}

// driver is one whose machines are of this process and have two files of memory. It fails where it is told to.
type driver struct {
	*inproc.Driver
	name     string
	boots    func() // told of each
	bootErr  error
	snapErr  error
	content  string // of the memory
	deafness bool   // the guest does not answer
}

var _ vmm.Driver = (*driver)(nil)

func newDriver() *driver {
	d := &driver{name: "fake", boots: func() {}, content: "memory"}
	d.Driver = inproc.New(func(ctx context.Context, c net.Conn) {
		if d.deafness {
			<-ctx.Done()
			return
		}
		guestagent.InProcess(ctx, c)
	})
	return d
}

func (d *driver) Name() string { return d.name }

func (d *driver) Boot(ctx context.Context, b vmm.Boot, _ vmm.Attach) (vmm.Machine, error) {
	d.boots()
	if d.bootErr != nil {
		return nil, d.bootErr
	}
	for _, f := range []string{b.Kernel, b.Initrd, b.Root, b.Scratch} {
		if _, err := os.Stat(f); err != nil {
			return nil, err
		}
	}
	p, err := d.Prepare(ctx, vmm.Template{}, vmm.Attach{})
	if err != nil {
		return nil, err
	}
	m, err := p.Restore(ctx)
	if err != nil {
		return nil, err
	}
	return &machine{m.(*inproc.Machine), d, b}, nil
}

type machine struct {
	*inproc.Machine
	d *driver
	b vmm.Boot
}

func (m *machine) Snapshot(_ context.Context, dir string) (vmm.Template, error) {
	m.End(vmm.Exit{})
	content := bytes.Repeat([]byte(m.d.content), 10_000)
	err := errors.Join(os.WriteFile(filepath.Join(dir, "memory"), content, 0o444), m.d.snapErr)
	if err != nil {
		return vmm.Template{}, err
	}
	err = os.WriteFile(filepath.Join(dir, "state"), []byte(fmt.Sprint(m.b)), 0o444)
	return vmm.Template{Dir: dir, Driver: m.d.name, Boot: m.b}, err
}

// files lists what is below a directory of the store.
func files(t testing.TB, s *images.Store, sub string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.Dir(), sub))
	must(t, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// flip changes one bit of a file, whoever may write it, and gives the way back.
func flip(t testing.TB, name string, off int64) (back func()) {
	t.Helper()
	change := func() {
		b, err := os.ReadFile(name)
		must(t, err)
		b[off] ^= 1
		must(t, os.Chmod(name, 0o644))
		must(t, os.WriteFile(name, b, 0o644))
	}
	change()
	return change
}
