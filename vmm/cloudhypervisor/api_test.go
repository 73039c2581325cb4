package cloudhypervisor_test

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
	"time"

	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
	"github.com/paddockvm/paddock/vmm/vmmtest"
)

// launched starts a VMM, real or fake, with an API that listens in a directory of this test's, and gives a client of it.
func launched(t *testing.T, l vmm.Launcher, binary string) *api.Client {
	t.Helper()
	return launchedIn(t, l, binary, t.TempDir())
}

// launchedIn starts one that has the directory and the files, under the numbers that a driver gives its machines' and from extraFD on.
func launchedIn(t *testing.T, l vmm.Launcher, binary, path string, files ...*os.File) *api.Client {
	t.Helper()
	path = filepath.Join(path, "api")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	f, err := listener.File()
	must(t, err)
	defer f.Close()
	dir, err := os.Open(filepath.Dir(path))
	must(t, err)
	defer dir.Close()
	events, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	defer events.Close()
	p, err := l.Launch(t.Context(), vmm.Command{
		Name: "m", Path: binary, Args: []string{"--api-socket", "fd=4", "--event-monitor", "fd=5"},
		Files: append([]*os.File{dir, f, events}, files...), Stderr: events,
	})
	must(t, err)
	c := api.New(func(ctx context.Context) (*net.UnixConn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return conn.(*net.UnixConn), nil
	})
	t.Cleanup(func() {
		must(t, p.Kill())
		c.Close()
	})
	return c
}

// shapes are what a VMM of v53 answers before there is a machine that runs, the real one as the fake: status, and words among the causes.
func shapes(t *testing.T, c *api.Client) {
	ctx := within(t)
	p, err := c.Ping(ctx)
	must(t, err)
	if !strings.HasPrefix(p.BuildVersion, "v5") || p.Version == "" || p.PID == 0 {
		t.Errorf("ping: %+v", p)
	}
	one := 1
	more := api.Disk{ID: "more", Path: "/dev/null", ReadOnly: true, ImageType: "Raw"}
	vsock := api.Vsock{ID: "vsock", CID: 3, Socket: "/tmp/none"}
	create := func() error {
		return c.Create(ctx, api.VM{
			CPUs: api.CPUs{Boot: 1, Max: 1}, Memory: api.Memory{Size: 16 << 20}, Payload: api.Payload{Kernel: "/dev/null"},
			RNG: api.RNG{Source: "/dev/urandom"}, Serial: api.Console{Mode: "Null"}, Console: api.Console{Mode: "Off"},
		})
	}
	walk(t, []step{
		{"info of nothing", func() error { _, err := c.Info(ctx); return err }, 404, "VM is not created"},
		{"boot of nothing", func() error { return c.Boot(ctx) }, 404, "VM config is missing"},
		{"pause of nothing", func() error { return c.Pause(ctx) }, 500, "VM is not running"},
		{"resume of nothing", func() error { return c.Resume(ctx) }, 500, "VM is not running"},
		{"shutdown of nothing", func() error { return c.Shutdown(ctx) }, 500, "VM is not running"},
		{"power button of nothing", func() error { return c.PowerButton(ctx) }, 500, "VM is not running"},
		{"reboot of nothing", func() error { return c.Reboot(ctx) }, 404, "VM is not created"},
		{"counters of nothing", func() error { _, err := c.Counters(ctx); return err }, 500, "VM is not running"},
		{"snapshot of nothing", func() error { return c.Snapshot(ctx, "file:///") }, 500, "VM is not running"},
		{"remove from nothing", func() error { return c.RemoveDevice(ctx, "more") }, 404, "VM is not created"},
		{"delete of nothing", func() error { return c.Delete(ctx) }, 0, ""},
		{"resize of nothing", func() error { return c.Resize(ctx, api.Resize{VCPUs: &one}) }, 404, "VM is not created"},
		{"resize a zone of nothing", func() error { return c.ResizeZone(ctx, api.ResizeZone{ID: "memory", RAM: 1 << 28}) }, 404, "VM is not created"},
		{"resize a disk of nothing", func() error { return c.ResizeDisk(ctx, api.ResizeDisk{ID: "root", Size: 1 << 20}) }, 404, "VM is not created"},
		{"add to nothing", func() error { _, err := c.AddNet(ctx, api.Net{ID: "net", MAC: vmm.GuestMAC}); return err }, 404, "VM is not created"},
		{"add a disk to nothing", func() error { _, err := c.AddDisk(ctx, more); return err }, 404, "The disk could not be added"},
		{"restore from nowhere", func() error { return c.Restore(ctx, api.Restore{Source: "file:///no/such"}) }, 500, ""},
		{"restore with too few descriptors", func() error {
			return c.Restore(ctx, api.Restore{Source: "file:///no/such", NetFDs: []api.NetFD{{ID: "net", Num: 1}}})
		}, 400, "Bad Request"},
		{"a mode that there is not", func() error {
			return c.Create(ctx, api.VM{
				CPUs: api.CPUs{Boot: 1, Max: 1}, Payload: api.Payload{Kernel: "/k"}, RNG: api.RNG{Source: "/dev/urandom"},
				Serial: api.Console{Mode: "Loud"}, Console: api.Console{Mode: "Off"},
			})
		}, 400, "Failed to deserialize JSON"},
		{"create", create, 0, ""},
		{"create again", create, 500, "VM is already created"},
		{"info", func() error {
			i, err := c.Info(ctx)
			if err == nil && i.State != api.Created {
				err = fmt.Errorf("info: %+v", i)
			}
			return err
		}, 0, ""},
		{"counters of one that is not booted", func() error { _, err := c.Counters(ctx); return err }, 500, "VM is not running"},
		{"snapshot of one that is not booted", func() error { return c.Snapshot(ctx, "file:///") }, 500, "VM is not running"},
		{"pause of one that is not booted", func() error { return c.Pause(ctx) }, 500, "VM is not running"},
		{"shutdown of one that is not booted", func() error { return c.Shutdown(ctx) }, 500, "VM is not running"},
		{"power button of one that is not booted", func() error { return c.PowerButton(ctx) }, 500, "VM is not running"},
		{"reboot of one that is not booted", func() error { return c.Reboot(ctx) }, 404, "VM is not created"},
		{"restore beside what is created", func() error { return c.Restore(ctx, api.Restore{Source: "file:///no/such"}) }, 500, "VM is already created"},
		{"resize of one that is not booted", func() error { return c.Resize(ctx, api.Resize{VCPUs: &one}) }, 0, ""},
		{"resize a disk of one that is not booted", func() error { return c.ResizeDisk(ctx, api.ResizeDisk{ID: "more", Size: 1 << 20}) }, 500, "Failed resizing a disk image"},
		{"remove what there is not", func() error { return c.RemoveDevice(ctx, "more") }, 500, `No device with id "more" to remove`},
		{"add a disk", func() error { _, err := c.AddDisk(ctx, more); return err }, 0, ""},
		{"add it again", func() error { _, err := c.AddDisk(ctx, more); return err }, 500, "Identifier more is not unique"},
		{"remove it", func() error { return c.RemoveDevice(ctx, "more") }, 0, ""},
		{"add it once more", func() error { _, err := c.AddDisk(ctx, more); return err }, 0, ""},
		{"add a vsock", func() error { _, err := c.AddVsock(ctx, vsock); return err }, 0, ""},
		{"add another vsock", func() error { _, err := c.AddVsock(ctx, vsock); return err }, 500, "Too many virtio-vsock devices"},
		{"delete", func() error { return c.Delete(ctx) }, 0, ""},
		{"info of what was deleted", func() error { _, err := c.Info(ctx); return err }, 404, "VM is not created"},
		{"create anew", create, 0, ""},
	})
	must(t, c.ShutdownVMM(ctx))
}

// step is a request, and what it is answered.
type step struct {
	name   string
	do     func() error
	status int // 0: it is done
	words  string
}

func walk(t *testing.T, steps []step) {
	t.Helper()
	for _, s := range steps {
		err := s.do()
		refused, is := errors.AsType[*api.Error](err)
		switch {
		case s.status == 0 && err != nil, s.status != 0 && !is:
			t.Errorf("%s: %v", s.name, err)
		case s.status != 0 && (refused.Status != s.status || len(refused.Causes) == 0 || !strings.Contains(fmt.Sprint(refused.Causes), s.words)):
			t.Errorf("%s: %d %q, want %d with %q", s.name, refused.Status, refused.Causes, s.status, s.words)
		}
	}
}

func TestFakeShapes(t *testing.T) {
	l, _ := newFakes(t, "v53.0")
	l.lax = true // a wrong mode is to be refused by the VMM, not by the description
	vmmtest.NoLeaks(t)
	shapes(t, launched(t, l, ""))
}

// TestRealShapes needs a binary and a /dev/kvm that opens, and no guest to run with it.
func TestRealShapes(t *testing.T) {
	path := binary(t)
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		if os.Getenv("REQUIRE_KVM") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v: Cloud Hypervisor does not start", err)
	} else {
		f.Close()
	}
	shapes(t, launched(t, vmm.Direct{}, path))
}

// TestEveryRequest makes each request that the client can make, and has it held against the published description.
func TestEveryRequest(t *testing.T) {
	l, _ := newFakes(t, "v53.0")
	if l.schema == nil {
		t.Skip("SKIPPED: no ../shared/data/cloud-hypervisor-v53.openapi.yaml beside the repository: requests are not held against it")
	}
	c, ctx := launched(t, l, ""), within(t)
	vcpus, memory := 2, int64(1<<30)
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	full := api.VM{
		CPUs:    api.CPUs{Boot: 1, Max: 4, Scheduling: "Vm"},
		Memory:  api.Memory{HotplugMethod: "VirtioMem", Zones: []api.Zone{{ID: "memory", Size: 1 << 20, File: "/m", Shared: true, HotplugSize: 128 << 20}}},
		Payload: api.Payload{Kernel: "/k", Cmdline: "quiet", Initramfs: "/i"},
		Disks:   []api.Disk{{ID: "root", Path: "/r", ReadOnly: true, ImageType: "Raw", Limits: "disks"}},
		Limits: []api.Limits{{ID: "disks", Limiter: api.Limiter{
			Bandwidth: &api.Bucket{Size: 1, RefillTime: 1000}, Ops: &api.Bucket{Size: 1, RefillTime: 1000},
		}}},
		RNG: api.RNG{Source: "/dev/urandom"}, Serial: api.Console{Mode: "File", File: "/c"}, Console: api.Console{Mode: "Off"},
		Vsock: &api.Vsock{ID: "vsock", CID: 3, Socket: "/v"}, PVPanic: true, Landlock: true, Rules: []api.PathRule{{Path: "/p", Access: "rw"}},
	}
	for _, request := range []func() error{ // most are refused: there is no such machine
		func() error { _, err := c.Ping(ctx); return err },
		func() error { return c.Create(ctx, full) },
		func() error { return c.Boot(ctx) },
		func() error { return c.Pause(ctx) },
		func() error { return c.Resume(ctx) },
		func() error { return c.Shutdown(ctx) },
		func() error { return c.PowerButton(ctx) },
		func() error { return c.Reboot(ctx) },
		func() error { _, err := c.Info(ctx); return err },
		func() error { _, err := c.Counters(ctx); return err },
		func() error { return c.Resize(ctx, api.Resize{VCPUs: &vcpus, RAM: &memory}) },
		func() error { return c.ResizeZone(ctx, api.ResizeZone{ID: "memory", RAM: memory}) },
		func() error { return c.ResizeDisk(ctx, api.ResizeDisk{ID: "root", Size: 1 << 20}) },
		func() error { _, err := c.AddDisk(ctx, full.Disks[0]); return err },
		func() error { _, err := c.AddVsock(ctx, *full.Vsock); return err },
		func() error { _, err := c.AddNet(ctx, api.Net{ID: "net", MAC: vmm.GuestMAC}, null); return err },
		func() error {
			_, err := c.AddDevice(ctx, api.Device{ID: "gpu", Path: "/sys/bus/pci/devices/0"})
			return err
		},
		func() error { return c.RemoveDevice(ctx, "gpu") },
		func() error { return c.Snapshot(ctx, "file:///s") },
		func() error { return c.Delete(ctx) },
		func() error {
			return c.Restore(ctx, api.Restore{Source: "file:///s", MemoryMode: "Copy", Resume: true})
		},
		func() error {
			return c.Restore(ctx, api.Restore{Source: "file:///s", NetFDs: []api.NetFD{{ID: "net", Num: 1}}}, null)
		},
		func() error { return c.ShutdownVMM(ctx) },
	} {
		err := request()
		if _, refused := errors.AsType[*api.Error](err); err != nil && !refused {
			t.Error(err)
		}
	}
}

// TestAnswers has the client read what a VMM might say.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		want   string // of the error; empty: none
	}{
		"causes":            {"HTTP/1.1 500 \r\nContent-Length: 15\r\n\r\n[\"one\",\"other\"]", "vmm.ping: 500 Internal Server Error: one: other"},
		"no causes":         {"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", "vmm.ping: 404 Not Found"},
		"causes in text":    {"HTTP/1.1 400 \r\nContent-Length: 5\r\n\r\nwrong", "vmm.ping: 400 Bad Request: wrong"},
		"an answer":         {"HTTP/1.1 200 \r\nContent-Length: 25\r\n\r\n{\"build_version\":\"v53.0\"}\n", ""},
		"an answer of text": {"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", "vmm.ping: read the answer"},
		"the end":           {"", "vmm.ping: read the answer: unexpected EOF"},
		"half":              {"HTTP/1.1 200 \r\nContent-Length: 99\r\n\r\n{", "vmm.ping: read the answer: unexpected EOF"},
		"too much":          {"HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n" + strings.Repeat("x", 5<<20), "vmm.ping: read the answer"},
		"endless headers":   {"HTTP/1.1 200 \r\nX: " + strings.Repeat("x", 5<<20), "vmm.ping: read the answer"},
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.NoLeaks(t)
			client := api.New(func(context.Context) (*net.UnixConn, error) { return answering(t, c.answer), nil })
			defer client.Close()
			_, err := client.Ping(within(t))
			if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
		})
	}
}

// answering is a connection to somebody who says one thing to whatever is asked.
func answering(t *testing.T, answer string) *net.UnixConn {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	must(t, err)
	ours, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	must(t, err)
	theirs, err := l.Accept()
	must(t, err)
	must(t, l.Close())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		b := make([]byte, 4<<10)
		for !bytes.Contains(b, []byte("\r\n\r\n")) {
			if _, err := theirs.Read(b); err != nil {
				return
			}
		}
		_, _ = theirs.Write([]byte(answer))
	}()
	t.Cleanup(func() {
		_ = ours.Close()
		<-done
	})
	return ours
}

// TestLateAnswer is not the next request's.
func TestLateAnswer(t *testing.T) {
	l, _ := newFakes(t, "v53.0")
	c := launched(t, l, "")
	l.next("vm.info", silent, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Info(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
	p, err := c.Ping(within(t))
	must(t, err)
	if p.BuildVersion != "v53.0" {
		t.Errorf("ping: %+v", p)
	}
}

// FuzzAnswer has the client come back from whatever a VMM says.
func FuzzAnswer(f *testing.F) {
	for _, answer := range []string{
		"HTTP/1.1 200 \r\nContent-Length: 25\r\n\r\n{\"build_version\":\"v53.0\"}\n", "HTTP/1.1 500 \r\nContent-Length: 7\r\n\r\n[\"one\"]",
		"HTTP/1.1 204 \r\n\r\n", "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n0\r\n\r\n", "HTTP/1.1 100 \r\n\r\n", "\x00", "",
	} {
		f.Add(answer)
	}
	f.Fuzz(func(t *testing.T, answer string) {
		client := api.New(func(context.Context) (*net.UnixConn, error) { return answering(t, answer), nil })
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := client.Ping(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no end to %q", answer)
		}
	})
}
