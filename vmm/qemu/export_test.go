package qemu

import (
	"context"
	"net"
	"os"
)

// NewEarly is the first connection after a restore.
func NewEarly(conn net.Conn, redial func(context.Context) (net.Conn, error)) net.Conn {
	return newEarly(conn, redial)
}

// SetCID is what makes a CID a vhost-vsock device's.
func SetCID(device *os.File, cid uint64) error { return setCID(device, cid) }
