// Package hostile makes what somebody might send to break whoever reads it: JSON documents that differ from good ones where bytes say so.
// A fuzzer that changes the bytes changes the documents' values, not only their text. It imports jobs.
//
// The package's tests send them to a whole dispatcher, a few each time. For many:
//
//	go test ./test/hostile -run FuzzRequests -args -more 5000
//	go test ./test/hostile -run '^$' -fuzz FuzzRequests -fuzztime 5m -parallel 1
package hostile

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// Bytes decide. When they are used up all that they decide is 0, which is to leave things as they are.
type Bytes struct{ left []byte }

// Of gives decisions by bytes.
func Of(b []byte) *Bytes { return &Bytes{b} }

// More tells whether there are any left.
func (b *Bytes) More() bool { return len(b.left) > 0 }

// N gives a number from 0 to n-1, of two bytes where n is more than 256.
func (b *Bytes) N(n int) int {
	v := b.next()
	if n > 256 {
		v = v<<8 | b.next()
	}
	return v % n
}

func (b *Bytes) next() int {
	if len(b.left) == 0 {
		return 0
	}
	v := b.left[0]
	b.left = b.left[1:]
	return int(v)
}

// Rest gives up to n bytes as they are.
func (b *Bytes) Rest(n int) []byte {
	n = min(n, len(b.left))
	v := b.left[:n:n]
	b.left = b.left[n:]
	return v
}

// Document changes an example as the bytes say: some of its values, mostly few, for what is wrong in all places is refused for the first, and
// then, seldom, its text.
func (b *Bytes) Document(example string) string {
	root := parse(example)
	for range []int{0, 1, 1, 1, 2, 2, 3, 7}[b.N(8)] {
		b.change(root)
	}
	var out strings.Builder
	root.write(&out)
	return b.text(out.String())
}

// node is a value: a list, an object, or else as it is written.
type node struct {
	raw  string
	open byte     // '[' or '{'; 0 for what has no parts
	keys []string // an object's, as they are written: an object can have one twice
	kids []*node
}

// parse reads an example, which is JSON: a fault is the test's.
func parse(example string) *node {
	d := json.NewDecoder(strings.NewReader(example))
	d.UseNumber()
	n, err := read(d)
	if err != nil {
		panic(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		panic("more than one value: " + example)
	}
	return n
}

func read(d *json.Decoder) (*node, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return &node{raw: written(t)}, nil
	}
	n := &node{open: byte(delim)}
	for d.More() {
		if n.open == '{' {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			n.keys = append(n.keys, written(key))
		}
		kid, err := read(d)
		if err != nil {
			return nil, err
		}
		n.kids = append(n.kids, kid)
	}
	_, err = d.Token()
	return n, err
}

func written(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // of an example
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (n *node) write(out *strings.Builder) {
	if n.open == 0 {
		out.WriteString(n.raw)
		return
	}
	out.WriteByte(n.open)
	for i, kid := range n.kids {
		if i > 0 {
			out.WriteByte(',')
		}
		if n.open == '{' {
			out.WriteString(n.keys[i] + ":")
		}
		kid.write(out)
	}
	out.WriteByte(n.open + 2) // ']' and '}'
}

// size is how many nodes there are, up to a bound that keeps documents from growing without end.
func (n *node) size() int {
	s := 1
	for _, kid := range n.kids {
		if s += kid.size(); s > maxSize {
			break
		}
	}
	return s
}

const maxSize = 4000

// pick goes from a node down, as far as the bytes say.
func (b *Bytes) pick(n *node) *node {
	for len(n.kids) > 0 && b.N(5) != 4 {
		n = n.kids[b.N(len(n.kids))]
	}
	return n
}

// value is one that no reader likes.
func (b *Bytes) value() *node { return parseRaw(values[b.N(len(values))]) }

// parseRaw keeps a text as it is, which may be no JSON.
func parseRaw(raw string) *node {
	if raw == "[]" || raw == "{}" {
		return &node{open: raw[0]}
	}
	return &node{raw: raw}
}

// change changes one value below a root, or the root.
func (b *Bytes) change(root *node) {
	n := b.pick(root)
	switch b.N(15) {
	case 0, 1:
		*n = *b.value()
	case 2, 12, 13, 14: // another of its kind
		kind := values
		switch {
		case n.open == 0 && n.raw[0] == '"':
			kind = texts
		case n.open == 0 && n.raw[0] <= '9':
			kind = numbers
		}
		*n = *parseRaw(kind[b.N(len(kind))])
	case 3: // a part goes
		if len(n.kids) > 0 {
			i := b.N(len(n.kids))
			n.kids = append(n.kids[:i:i], n.kids[i+1:]...)
			if n.open == '{' {
				n.keys = append(n.keys[:i:i], n.keys[i+1:]...)
			}
		}
	case 4: // a key twice, with the same or with another value
		if len(n.kids) > 0 {
			i := b.N(len(n.kids))
			kid := n.kids[i]
			if b.N(2) == 1 {
				kid = b.value()
			}
			n.add(b, n.key(i), kid)
		}
	case 5: // a key that is nearly one
		if n.open == '{' && len(n.keys) > 0 {
			i := b.N(len(n.keys))
			n.keys[i] = b.nearly(n.keys[i])
		}
	case 6: // a field that is known somewhere
		n.add(b, `"`+names[b.N(len(names))]+`"`, b.value())
	case 7: // and with something of this very document
		n.add(b, `"`+names[b.N(len(names))]+`"`, b.pick(root).copy())
	case 8: // another value of this document
		*n = *b.pick(root).copy()
	case 9: // deeper than it was
		was := n.copy()
		times := []int{1, 1, 2, 15, 20, 200}[b.N(6)]
		for range times {
			if b.N(2) == 0 {
				was = &node{open: '[', kids: []*node{was}}
			} else {
				was = &node{open: '{', keys: []string{`"a"`}, kids: []*node{was}}
			}
		}
		*n = *was
	case 10: // many of one
		if len(n.kids) > 0 {
			i, times := b.N(len(n.kids)), []int{1, 2, 16, 32, 64, 65, 256, 1024}[b.N(8)]
			for t := 0; t < times && n.size() < maxSize; t++ {
				n.keys, n.kids = append(n.keys, n.key(i)), append(n.kids, n.kids[i])
			}
		}
	case 11: // a text with something in it that is none
		if strings.HasPrefix(n.raw, `"`) {
			n.raw = `"` + within[b.N(len(within))] + n.raw[1:]
		}
	}
}

func (n *node) key(i int) string {
	if n.open != '{' {
		return `""`
	}
	return n.keys[i]
}

// add adds a part to what has any, in front or behind.
func (n *node) add(b *Bytes, key string, kid *node) {
	if n.open == 0 || n.size()+kid.size() > maxSize {
		return
	}
	if b.N(2) == 0 {
		n.keys, n.kids = append(n.keys, key), append(n.kids, kid)
		return
	}
	n.keys, n.kids = append([]string{key}, n.keys...), append([]*node{kid}, n.kids...)
}

func (n *node) copy() *node {
	c := *n
	c.keys = append([]string(nil), n.keys...)
	c.kids = make([]*node, len(n.kids))
	for i, kid := range n.kids {
		c.kids[i] = kid.copy()
	}
	return &c
}

// nearly gives a key that is nearly the one that is written so.
func (b *Bytes) nearly(key string) string {
	in := strings.Trim(key, `"`)
	switch b.N(7) {
	case 0:
		return `"` + strings.ToUpper(in) + `"`
	case 1:
		return `"` + in + ` "`
	case 2:
		return `"` + strings.ReplaceAll(in, "s", "ſ") + `"` // U+017F, which encoding/json folds to s
	case 3:
		return `"` + in + "\xff\""
	case 4:
		return `"` + in + `\ud800"`
	case 5:
		return `""`
	}
	return `"` + strings.Repeat(in, 100) + `"`
}

// text changes what is written as bytes say.
func (b *Bytes) text(s string) string {
	switch b.N(24) {
	case 1:
		return s[:b.N(len(s)+1)]
	case 2:
		return s + string(b.Rest(16))
	case 3:
		at := b.N(len(s) + 1)
		return s[:at] + string(b.Rest(8)) + s[at:]
	case 4:
		return "\xef\xbb\xbf" + s
	case 5:
		return " \n" + s + "\t "
	case 6:
		return s + s
	case 7:
		return ""
	}
	return s
}
