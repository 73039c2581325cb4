package qemu_test

import (
	"testing"
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

func TestFirst(t *testing.T) {
	d, err := qemu.New(qemu.Config{RunDir: t.TempDir(), Launcher: vmm.Direct{}})
	if err != nil {
		t.Fatal(err)
	}
	var g vmmtest.TestGuest
	ctx := t.Context()
	boot := vmmtest.Linux(t)
	s := time.Now()
	m, err := d.Boot(ctx, boot)
	if err != nil {
		t.Fatal(err)
	}
	v, err := g.Echo(ctx, m, []byte("hello"))
	t.Log(time.Since(s), string(v), err, m.Console())
	s = time.Now()
	tpl, err := m.Snapshot(ctx, t.TempDir())
	t.Log(time.Since(s), tpl, err)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		s = time.Now()
		p, err := d.Prepare(ctx, tpl)
		t.Log("prepare", time.Since(s), err)
		if err != nil {
			t.Fatal(err)
		}
		s = time.Now()
		m, err := p.Restore(ctx)
		t.Log("restore", time.Since(s), err)
		if err != nil {
			t.Fatal(err)
		}
		s = time.Now()
		v, err := g.Echo(ctx, m, []byte("hello"))
		t.Log("first", time.Since(s), string(v), err)
		s = time.Now()
		v, err = g.Echo(ctx, m, []byte("hello"))
		t.Log("second", time.Since(s), string(v), err)
		s = time.Now()
		err = m.Close()
		t.Log("close", time.Since(s), err, m.Exit())
	}
}
