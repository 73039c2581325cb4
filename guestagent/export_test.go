package guestagent

import "github.com/paddockvm/paddock/guestagent/wire"

// ReadNetwork is readNetwork without what it gives.
func ReadNetwork(n *wire.Network) error {
	_, err := readNetwork(n)
	return err
}
