package config

import (
	"strings"
)

// suggestKey says what a user may have meant by the unknown key in section s.
func suggestKey(root, s *setting, key string) string {
	var keys []string
	for c := range s.named {
		keys = append(keys, c.key)
	}
	if near := nearest(key, keys); near != "" {
		return "did you mean " + quote(near) + "?"
	}
	if path := elsewhere(root, s, key); path != "" {
		return "did you mean " + path + "?"
	}
	if len(keys) > 0 && len(keys) <= 12 {
		return "known here: " + strings.Join(keys, ", ")
	}
	return "`config defaults` prints every setting"
}

// elsewhere is the path of the one setting outside s with that key, or "".
func elsewhere(root, s *setting, key string) string {
	found := ""
	var look func(*setting)
	look = func(at *setting) {
		for c := range at.named {
			if at != s && fold(c.key) == fold(key) {
				if found == "" {
					found = c.path
				} else {
					found = "?"
				}
			}
			if c.kind == section {
				look(c)
			}
		}
	}
	look(root)
	return strings.TrimPrefix(found, "?")
}

// nearest is the candidate that differs from word by few typing errors, or "".
func nearest(word string, candidates []string) string {
	word = fold(word)
	if len(word) > 64 {
		return ""
	}
	best, least := "", 1+min(2, len(word)/3)
	for _, c := range candidates {
		if d := distance(word, fold(c)); d < least {
			best, least = c, d
		}
	}
	return best
}

// fold makes max_bytes, max-bytes and maxBytes the same.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' {
			return -1
		}
		return r
	}, strings.ToLower(s))
}

// distance counts the letters to insert, drop, change or swap with their
// neighbor to turn a into b (optimal string alignment).
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
