package config

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// blame says where the settings were set that the text of an error names, each by
// its path below s. Where it names none, it says where s itself stands.
func blame(s *setting, text string) string {
	b := blamer{prefix: s.path}
	for _, word := range strings.FieldsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("._[]-", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) {
		b.named = append(b.named, strings.Trim(word, "."))
	}
	b.below(s)
	if len(b.places) == 0 && s.path != "" && s.origin.kind == fromFile {
		b.places = append(b.places, "it is set by "+s.origin.String())
	}
	if len(b.places) == 0 {
		return ""
	}
	return " (" + strings.Join(b.places, ", ") + ")"
}

// blamer gathers where the named settings were set.
type blamer struct {
	prefix string
	named  []string
	places []string
}

func (b *blamer) add(path string, o origin) {
	if o.kind != fromDefault {
		b.places = append(b.places, path+" is set by "+o.String())
	}
}

// below looks at what is in section s.
func (b *blamer) below(s *setting) {
	for _, c := range s.children {
		path := strings.TrimPrefix(strings.TrimPrefix(c.path, b.prefix), ".")
		switch {
		case c.kind == section && s.kind == sections:
			if slices.Contains(b.named, path) {
				b.element(path, c)
			}
		case c.kind == section || c.kind == sections && len(c.children) > 0:
			b.below(c)
		case slices.Contains(b.named, path):
			b.add(path, c.origin)
		case c.kind == scalars:
			b.items(path, c)
		}
	}
}

// element blames those settings of an element of a list that are named by their keys
// alone, or else the element.
func (b *blamer) element(path string, element *setting) {
	before := len(b.places)
	for c := range element.named {
		if slices.Contains(b.named, c.key) {
			b.add(path+"."+c.key, c.origin)
		}
	}
	if len(b.places) == before {
		b.add(path, element.origin)
	}
}

// items blames those items of a list of values that are named.
func (b *blamer) items(path string, list *setting) {
	for i := range list.value.Len() {
		item := fmt.Sprintf("%s[%d]", path, i)
		if !slices.Contains(b.named, item) {
			continue
		}
		from := list.origin
		if from.kind == fromFile && i < len(list.lines) {
			from.line = list.lines[i]
		}
		b.add(item, from)
	}
}
