package qemu_test

import (
	"testing"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
)

func TestProbe(t *testing.T) {
	d, err := qemu.New(qemu.Config{RunDir: t.TempDir(), Launcher: vmm.Direct{}})
	if err != nil {
		t.Fatal(err)
	}
	caps, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", caps)
	t.Log(d.KVMError(t.Context()))
}
