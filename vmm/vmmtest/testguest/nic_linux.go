package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// etherType is IEEE 802's for experiments: nothing else on a wire has it.
const etherType = 0x88b5

// card is the network card's raw socket (packet(7)), once frames are listened for.
var card = -1

// nics names the network cards and their hardware addresses.
func nics() string {
	all, err := net.Interfaces()
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 {
			names = append(names, i.HardwareAddr.String())
		}
	}
	return strings.Join(names, " ")
}

// frameListen brings the card up and listens on it.
func frameListen() error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		if err := up(i.Name); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
			return err
		}
		card = fd
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, etherType)), Ifindex: i.Index})
	}
	return errors.New("no card")
}

// up brings a card up, without IPv6: its kernel would send frames by itself.
func up(name string) error {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// frameSend sends a whole frame.
func frameSend(hexed string) error {
	b, err := hex.DecodeString(hexed)
	if err != nil {
		return err
	}
	_, err = unix.Write(card, b)
	return err
}

// frameGet waits for the next frame.
func frameGet() string {
	b := make([]byte, 2048)
	n, err := unix.Read(card, b)
	if err != nil {
		return err.Error()
	}
	return hex.EncodeToString(b[:n])
}

func okOr(err error) string {
	if err != nil {
		return err.Error()
	}
	return "ok"
}
