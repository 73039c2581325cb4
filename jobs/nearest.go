package jobs

import (
	"maps"
	"slices"
)

// unknownMessage says that a field is unknown, and which known one may have been meant.
func unknownMessage(key string, fields map[string][]int) string {
	if near := Nearest(key, slices.Sorted(maps.Keys(fields))); near != "" {
		return "unknown field; did you mean " + near + "?"
	}
	return "unknown field"
}

// Nearest gives the candidate with the fewest edits to the word, or "" where even that one is unlike it.
func Nearest(word string, candidates []string) string {
	best, bestDistance := "", len(word)/2+1
	if len(word) > 64 {
		return ""
	}
	for _, c := range candidates {
		if d := edits(word, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// edits is the Levenshtein distance in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
