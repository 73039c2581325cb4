package objects

// span is a part of an upload, from one byte to before another.
type span struct{ from, to int64 }

// spans are parts of an upload, sorted and apart from each other.
type spans []span

func (l spans) has(s span) bool {
	for _, one := range l {
		if one.from <= s.from && s.to <= one.to {
			return true
		}
	}
	return false
}

// with gives the spans with one more, joined with those that it touches.
func (l spans) with(s span) spans {
	var all spans
	for _, one := range l {
		if one.to < s.from || s.to < one.from {
			all = append(all, one)
		} else {
			s = span{min(s.from, one.from), max(s.to, one.to)}
		}
	}
	at := 0
	for at < len(all) && all[at].from < s.from {
		at++
	}
	return append(all[:at:at], append(spans{s}, all[at:]...)...)
}

// bytes are all that are in them.
func (l spans) bytes() (n int64) {
	for _, one := range l {
		n += one.to - one.from
	}
	return n
}

// next is the first byte that is in none.
func (l spans) next() int64 {
	if len(l) == 0 || l[0].from > 0 {
		return 0
	}
	return l[0].to
}
