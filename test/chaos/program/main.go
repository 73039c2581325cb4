// Command program is what the jobs of test/chaos run: it says on a socket when it begins and when it ends, so that somebody who is no
// part of Paddock knows what ran, and when. Where it is killed, the kernel says so by closing the connection.
//
//	program SOCKET MILLISECONDS
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want SOCKET MILLISECONDS, not %q", args)
	}
	ms, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	c, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "%s %s %d\n", os.Getenv("PADDOCK_JOB"), os.Getenv("PADDOCK_ATTEMPT"), time.Now().UnixMicro()); err != nil {
		return err
	}
	time.Sleep(time.Duration(ms) * time.Millisecond)
	if _, err := fmt.Fprintf(c, "%d\n", time.Now().UnixMicro()); err != nil {
		return err
	}
	return c.Close()
}
