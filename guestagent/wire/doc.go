// Package wire is the protocol between a host and the agent in a guest: frames with streams, flow control and a handshake that
// finds its place in a byte stream of unknown history, over anything that carries bytes both ways. Version 1.
//
// It may import the standard library only, knows nothing of processes or files, and trusts the other end in nothing:
// every length is bounded before it is allocated. docs/agent-protocol.md describes it for people.
package wire
