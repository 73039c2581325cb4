package cloudhypervisor_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/test/harness"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/checkpoint"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// agentLab is a driver with a template of a machine that can be resized, with Paddock's agent.
type agentLab struct {
	*cloudhypervisor.Driver
	scales   *vmmtest.Scales
	template vmm.Template
}

func newAgentLab(t testing.TB) *agentLab {
	t.Helper()
	needKVM(t)
	img, err := harness.Image(t.Context(), "base")
	must(t, err)
	l := &agentLab{scales: &vmmtest.Scales{Launcher: vmm.Direct{}}}
	l.Driver = newDriver(t, cloudhypervisor.Config{Launcher: l.scales})
	m, err := l.Boot(within(t), vmmtest.Headroom(vmmtest.Agent(t, img.Kernel, img.Initrd, img.Root, img.Scratch)), vmm.Attach{})
	must(t, err)
	defer m.Close()
	c := greet(t, m)
	must(t, c.Quiesce(within(t)))
	must(t, c.Close())
	time.Sleep(300 * time.Millisecond) // as images.Host does: the guest goes idle
	if err := m.(vmm.Resizer).Resize(within(t), 1, 512); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("what is to be a template has grown: %v", err)
	}
	l.template, err = m.Snapshot(within(t), t.TempDir())
	must(t, err)
	return l
}

// agent is the guest of a machine.
type agent struct{ *client.Client }

func greet(t testing.TB, m vmm.Machine) agent {
	t.Helper()
	conn, err := m.DialGuest(within(t))
	must(t, err)
	c, err := client.Connect(within(t), conn)
	if err != nil {
		t.Fatalf("%v; console:\n%s", err, m.Console())
	}
	t.Cleanup(func() { _ = c.Close() })
	return agent{c}
}

func (a agent) Use(ctx context.Context, vcpus, pluggedMiB int) (vcpusUsed, pluggedMiBUsed int, err error) {
	got, err := a.Resize(ctx, wire.Resize{VCPUs: vcpus, PluggedMiB: pluggedMiB})
	return got.VCPUs, got.PluggedMiB, err
}

func (a agent) Run(ctx context.Context, line string) (string, error) {
	var out bytes.Buffer
	exit, err := a.Exec(ctx, wire.Exec{
		ID: "test", Argv: []string{"/bin/bash", "-c", line}, Env: []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}, User: "root",
	}, client.Streams{Stdout: &out, Stderr: &out})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%+v", exit)
	}
	return strings.TrimSpace(out.String()), err
}

// clone makes a machine of a template, a machine of its own.
func (l *agentLab) clone(t testing.TB, template vmm.Template) (vmm.Machine, agent) {
	t.Helper()
	p, err := l.Prepare(within(t), template, vmm.Attach{})
	must(t, err)
	m, err := p.Restore(within(t))
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", m.ID(), m.Console())
		}
		must(t, m.Close())
	})
	c := greet(t, m)
	random := make([]byte, 96)
	_, _ = rand.Read(random)
	if _, err := c.Restore(within(t), wire.Restore{
		Epoch: random[:16], Entropy: random[16:80], MachineID: hex.EncodeToString(random[80:]),
		TimeUnixNS: time.Now().UnixNano(), Hostname: m.ID(), Scratch: true,
	}); err != nil {
		t.Fatalf("restore: %v; console:\n%s", err, m.Console())
	}
	return m, c
}

// TestRealResize: the template's files are what they were when its clones have grown and shrunk, and what is kept of one that has is whole.
func TestRealResize(t *testing.T) {
	l := newAgentLab(t)
	files, err := filepath.Glob(filepath.Join(l.template.Dir, "*"))
	must(t, err)
	if len(files) != 4 {
		t.Errorf("template: %v", files)
	}
	before := vmmtest.Hashes(t, files...)
	t.Run("conformance", func(t *testing.T) {
		vmmtest.RunResize(t, vmmtest.ResizeFixture{
			Scales: l.scales, BesideMiB: 64,
			Clone: func(t testing.TB) (vmm.Machine, vmmtest.Sized) { return l.clone(t, l.template) },
		})
	})
	t.Run("checkpoints", l.checkpoints)
	if diff := cmp.Diff(before, vmmtest.Hashes(t, files...)); diff != "" {
		t.Errorf("the template has changed: %s", diff)
	}
}

// checkpoints are of no machine that has grown, and of one that has shrunk again what it is then, also where that grows again.
func (l *agentLab) checkpoints(t *testing.T) {
	m, guest := l.clone(t, l.template)
	sized := func(m vmm.Machine, guest agent, memoryMiB int) {
		t.Helper()
		if r := m.(vmm.Resizer); memoryMiB > 256 {
			must(t, r.Resize(within(t), 1, memoryMiB))
		}
		_, used, err := guest.Use(within(t), 1, memoryMiB-256)
		must(t, err)
		if used != memoryMiB-256 {
			t.Errorf("%d MiB of plugged memory are in use, want %d", used, memoryMiB-256)
		}
		must(t, m.(vmm.Resizer).Resize(within(t), 1, memoryMiB))
	}
	run := func(guest agent, line, want string) {
		t.Helper()
		if got, err := guest.Run(within(t), line); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", line, got, err, want)
		}
	}
	sized(m, guest, 768)
	const fill = "mount -t tmpfs -o size=600m none /mnt && head -c 350M /dev/zero > /mnt/f && wc -c < /mnt/f && rm /mnt/f && umount /mnt"
	run(guest, fill, fmt.Sprint(350<<20))
	if _, err := m.(vmm.Checkpointer).Checkpoint(within(t), t.TempDir(), l.template); !errors.Is(err, vmm.ErrUnsupported) {
		t.Errorf("of one that has grown: %v", err)
	}
	sized(m, guest, 256)
	run(guest, "mount -t tmpfs none /mnt && cd /mnt && head -c 20M /dev/urandom > r && md5sum r > sum && echo kept | tee f", "kept")
	delta := t.TempDir()
	c, err := m.(vmm.Checkpointer).Checkpoint(within(t), delta, l.template)
	must(t, err)
	t.Logf("kept: %d MiB of memory in %v", c.MemoryBytes>>20, c.Paused)
	kept := l.template
	kept.Dir = t.TempDir()
	entries, err := os.ReadDir(delta)
	must(t, err)
	layer := checkpoint.Layer{Dir: delta}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), checkpoint.IndexSuffix) {
			layer.Files = append(layer.Files, e.Name())
		}
	}
	must(t, checkpoint.Flatten(kept.Dir, func(name string) string {
		if name == checkpoint.ScratchFile {
			return l.template.Boot.Scratch
		}
		return filepath.Join(l.template.Dir, name)
	}, []checkpoint.Layer{layer}))
	kept.Boot.Scratch = filepath.Join(kept.Dir, checkpoint.ScratchFile)
	again, guest := l.clone(t, kept)
	run(guest, "cat /mnt/f && cd /mnt && md5sum -c sum", "kept\nr: OK")
	sized(again, guest, 768)
	run(guest, "cat /mnt/f && cd /mnt && md5sum -c sum && mkdir /tmp/m && mount -t tmpfs -o size=600m none /tmp/m && head -c 350M /dev/zero > /tmp/m/f && wc -c < /tmp/m/f && rm /tmp/m/f",
		"kept\nr: OK\n"+fmt.Sprint(350<<20))
	sized(again, guest, 256)
	run(guest, "cat /mnt/f && cd /mnt && md5sum -c sum", "kept\nr: OK")
}
