package client_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) { leak.VerifyTestMain(m) }

// The frame types and channels of docs/agent-protocol.md.
const (
	tOpen = 1 + iota
	tData
	tCredit
	tEnd
	tReply
	tReset
)

const (
	chData = iota
	chMessage
	chStdout
	chStderr
)

// frame is one by hand. Stream 1 is the hello; the test's first operation is stream 2.
func frame(stream uint32, typ, channel byte, payload string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(append(b, typ, channel, 0, 0), payload...)
}

func join(frames ...[]byte) []byte {
	var all []byte
	for _, f := range frames {
		all = append(all, f...)
	}
	return all
}

// heard is a frame from the host.
type heard struct {
	stream  uint32
	typ     byte
	payload []byte
}

func hear(r io.Reader) (heard, error) {
	var b [12]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return heard{}, err
	}
	h := heard{stream: binary.BigEndian.Uint32(b[4:]), typ: b[8], payload: make([]byte, binary.BigEndian.Uint32(b[:]))}
	_, err := io.ReadFull(r, h.payload)
	return h, err
}

// greet plays a guest up to its answer.
func greet(conn net.Conn, r *bufio.Reader) error {
	b := make([]byte, 26)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	_, err := conn.Write(join([]byte("PDKGUEST\x01"), b[10:]))
	return err
}

const hello = `{"hello":{"version":"1","os":"linux","arch":"amd64"}}`

// hostileGuest is a connected client whose guest answers hello, and each further request with what say gives for its stream's number. It
// goes on reading, and gives no credit.
func hostileGuest(t *testing.T, say func(stream uint32, request string) []byte) *client.Client {
	t.Helper()
	host, guest := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := bufio.NewReader(guest)
		if err := greet(guest, r); err != nil {
			t.Errorf("greet: %v", err)
			return
		}
		for {
			h, err := hear(r)
			if err != nil {
				return
			}
			if h.typ != tOpen {
				continue
			}
			says := frame(1, tReply, 0, hello)
			if h.stream > 1 {
				says = say(h.stream, string(h.payload))
			}
			if _, err := guest.Write(says); err != nil {
				return
			}
		}
	}()
	c, err := client.Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = guest.Close()
		<-done
	})
	return c
}
