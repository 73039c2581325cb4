package bus_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// disk is a file system of its own, whose size can be changed.
type disk struct {
	*testing.T
	dir string
}

func newDisk(t *testing.T, size string) disk {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root to mount a small file system: a full disk is not tried")
	}
	d := disk{t, t.TempDir()}
	if err := syscall.Mount("paddock-test", d.dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(d.dir, syscall.MNT_DETACH); err != nil { // the server closes a file or two after it has ended
			t.Error("unmount:", err)
		}
	})
	return d
}

// resize gives it another size, of no less than it holds.
func (d disk) resize(size string) {
	d.Helper()
	if err := syscall.Mount("", d.dir, "", syscall.MS_REMOUNT, "size="+size); err != nil {
		d.Fatal(err)
	}
}

// fill leaves no room.
func (d disk) fill() {
	d.Helper()
	for {
		var st syscall.Statfs_t
		if err := syscall.Statfs(d.dir, &st); err != nil {
			d.Fatal(err)
		}
		err := syscall.Mount("", d.dir, "", syscall.MS_REMOUNT, fmt.Sprint("size=", (st.Blocks-st.Bfree)*uint64(st.Bsize)))
		if err == nil {
			return
		}
		if !errors.Is(err, syscall.EINVAL) { // the server has written something since it was measured
			d.Fatal(err)
		}
	}
}

func (d disk) embed() *bus.Server {
	d.Helper()
	s, err := bus.Embed(bus.EmbedConfig{Listen: "127.0.0.1:0", StoreDir: d.dir, Log: zerolog.Nop()})
	if err != nil {
		d.Fatal(err)
	}
	return s
}

func (d disk) connect(s *bus.Server, events int64) (*bus.Bus, error) {
	b, err := bus.Connect(d.Context(), bus.Config{Server: s, Name: "test", Log: zerolog.Nop(), EventsBytes: events})
	if err == nil {
		d.Cleanup(b.Close)
	}
	return b, err
}

// TestFullDisk: what could not be stored for want of room is stored once there is some again, by the same server, which goes on judging what is
// enqueued.
func TestFullDisk(t *testing.T) {
	d := newDisk(t, "4g")
	s := d.embed()
	defer s.Close()
	b, err := d.connect(s, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	brain := &bustest.Brain{}
	bustest.Serve(t, b, brain)
	id, seq := jobs.NewID(), int64(0)
	output := func() error {
		seq++
		return b.Publish(t.Context(), bustest.Event(id, 1, seq, strings.Repeat("x", 64<<10)))
	}
	if err := output(); err != nil {
		t.Fatal(err)
	}
	d.fill()
	for err = nil; err == nil; err = output() { // what lies in its files already may have room yet
	}
	t.Log(err)
	d.resize("4g")
	bustest.Eventually(t, "an event is stored again", func() bool { return output() == nil })
	nc, err := nats.Connect(s.URL(), nats.Timeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	newQueue(t, nc).put("t", "", []byte(hello))
	bustest.Eventually(t, "a spec is judged", func() bool { return len(brain.Jobs()) == 1 })
}

// TestLessRoomThanPromised: a server begins on what it has, where the disk has less room by now than its streams may take.
func TestLessRoomThanPromised(t *testing.T) {
	d := newDisk(t, "20g")
	s := d.embed()
	b, err := d.connect(s, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	s.Close()
	d.resize("1g")
	for _, events := range []int64{0, 2 << 30} { // as it was, and with less
		s := d.embed()
		defer s.Close()
		b, err := d.connect(s, events)
		if err != nil {
			t.Fatalf("with %d bytes of events: %v", events, err)
		}
		b.Close()
		s.Close()
	}
}

// TestTooLittleRoom: on a disk that is too small there is a hint.
func TestTooLittleRoom(t *testing.T) {
	d := newDisk(t, "6g")
	s := d.embed()
	defer s.Close()
	if _, err := d.connect(s, 0); err == nil || !strings.Contains(err.Error(), "--events-gib") {
		t.Errorf("got %v, want a word of --events-gib", err)
	}
	if _, err := d.connect(s, 1<<30); err != nil {
		t.Error(err)
	}
}
