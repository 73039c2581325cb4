package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/test/harness"
)

// token is what a test's packets carry: who sends it, and what it is.
func token(run, name string) string { return "paddock<" + run + "|" + name + ">" }

var tokenRE = regexp.MustCompile(`paddock<([^|]*)\|([^>]*)>`)

// witness sees every packet that comes into a network namespace, before any rule of it.
type witness struct {
	netns string
	looks int // how often it was asked

	mu      sync.Mutex
	seen    []sighting
	waiting map[sighting]chan struct{}
}

// sighting is a packet with a token, or one that asks for a connection: that has no run, and is named as tries of TCP are.
type sighting struct{ card, from, run, name string }

// watch begins to look. Who comes later is seen for certain.
func watch(t *testing.T, netns string) *witness {
	t.Helper()
	w := &witness{netns: netns, waiting: map[sighting]chan struct{}{}}
	begun, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		begun <- harness.InNetns(netns, func() error { return w.look(t, begun) })
	}()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		<-ended
		if err := <-begun; err != nil {
			t.Error("the witness:", err)
		}
	})
	return w
}

func (w *witness) look(t *testing.T, begun chan<- error) error {
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in the network's order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// It looks up now and then whether the test has ended.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		return err
	}
	begun <- nil
	cards := map[int]string{}
	b := make([]byte, 70_000)
	for t.Context().Err() == nil {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) { // a card went
			continue
		}
		if err != nil {
			return err
		}
		at, ok := from.(*unix.SockaddrLinklayer)
		if !ok || at.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if cards[at.Ifindex] == "" {
			if c, err := net.InterfaceByIndex(at.Ifindex); err == nil {
				cards[at.Ifindex] = c.Name
			}
		}
		w.note(cards[at.Ifindex], b[:n])
	}
	var lost unix.TpacketStats
	if s, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		lost = *s
	}
	if lost.Drops > 0 {
		return fmt.Errorf("%d packets of %d were too many", lost.Drops, lost.Packets)
	}
	return nil
}

func (w *witness) note(card string, frame []byte) {
	var from, asks string
	switch kind := binary.BigEndian.Uint16(frame[12:]); {
	case kind == etherIPv4 && len(frame) >= 34:
		from = netip.AddrFrom4([4]byte(frame[26:30])).String()
		asks = asksFor(frame[23], frame[30:34], frame[14+int(frame[14]&15)*4:])
	case kind == etherIPv6 && len(frame) >= 54:
		from = netip.AddrFrom16([16]byte(frame[22:38])).String()
		asks = asksFor(frame[20], frame[38:54], frame[54:])
	case kind == etherARP && len(frame) >= 32:
		from = netip.AddrFrom4([4]byte(frame[28:32])).String()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	saw := []sighting{{card, from, "", asks}} // with no name it has a source all the same
	for _, m := range tokenRE.FindAllSubmatch(frame, -1) {
		saw = append(saw, sighting{card, from, string(m[1]), string(m[2])})
	}
	for _, s := range saw {
		w.seen = append(w.seen, s)
		s.from = ""
		if c := w.waiting[s]; c != nil {
			close(c)
			delete(w.waiting, s)
		}
	}
}

func asksFor(proto byte, to, segment []byte) string {
	if proto != unix.IPPROTO_TCP || len(segment) < 14 || segment[13]&0x12 != 2 { // SYN, and no ACK
		return ""
	}
	a, _ := netip.AddrFromSlice(to)
	return "tcp " + netip.AddrPortFrom(a, binary.BigEndian.Uint16(segment[2:])).String()
}

// saw waits until a packet with a token has come in by a card, and fails the test where none comes.
func (w *witness) saw(t *testing.T, card, run, name string) {
	t.Helper()
	want := sighting{card: card, run: run, name: name}
	w.mu.Lock()
	if slices.ContainsFunc(w.seen, func(s sighting) bool { s.from = ""; return s == want }) {
		w.mu.Unlock()
		return
	}
	came := make(chan struct{})
	w.waiting[want] = came
	w.mu.Unlock()
	select {
	case <-came:
	case <-time.After(time.Minute):
		t.Fatalf("no packet %q of %s came into %s by %s", name, run, w.netns, card)
	}
}

// told gives all that has come in until now, and forgets it.
func (w *witness) told(t *testing.T) []sighting {
	t.Helper()
	w.looks++
	now := fmt.Sprint("now ", w.looks)                     // of its own, for the kernel sends it back: nobody is there
	send(t, w.netns, "127.0.0.1:9", token("witness", now)) // behind all the others
	w.saw(t, "lo", "witness", now)
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen
	w.seen = nil
	return s
}

// send sends a datagram from a namespace.
func send(t *testing.T, netns, to, what string) {
	t.Helper()
	err := harness.InNetns(netns, func() error {
		c, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(what))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// inject sends a frame out of a namespace's card.
func inject(t *testing.T, netns, card string, frame []byte) {
	t.Helper()
	err := harness.InNetns(netns, func() error {
		c, err := net.InterfaceByName(card)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: c.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
}
