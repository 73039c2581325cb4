package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/vmm"
)

// TestExamineVsock: the doctor says why machines have no vsock, and that they have a serial port instead.
func TestExamineVsock(t *testing.T) {
	listened := errors.New("vsock: port 22 of this host's vsock is listened on")
	for name, c := range map[string]struct {
		accel  string
		err    error
		status status
		says   string
	}{
		"it is there, and nobody else": {"kvm", nil, ok, "nobody listens"},
		"somebody listens":             {"kvm", listened, degraded, "port 22 of this host's vsock is listened on; machines have a serial port"},
		"the device is missing":        {"kvm", errors.New("vsock: open /dev/vhost-vsock: no such file or directory"), degraded, "/dev/vhost-vsock: no such file"},
		"an emulated processor":        {"tcg", errors.New("vsock: with an emulated processor it is used only when it is asked for"), note, "only when it is asked for"},
	} {
		f := examineVsock(vmm.Caps{Accel: c.accel}, c.err)
		if f.Check != "vsock" || f.Status != c.status || !strings.Contains(f.Detail, c.says) || (f.Status == degraded) != (f.Advice != "") {
			t.Errorf("%s: %+v", name, f)
		}
	}
}
