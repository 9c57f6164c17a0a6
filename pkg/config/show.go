package config

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
)

// Setting is one value of a loaded configuration.
type Setting struct {
	// Path is its name in the file, such as proxy.listen or origin.hosts[0].name.
	Path string
	// Value is its text; lists are in brackets, secrets are [redacted].
	Value string
	// Origin is "default", "file NAME:LINE", "env NAME" or "flag --NAME".
	Origin string
	// Env and Flag are the variable and the flag that set it, or empty.
	Env, Flag string
	// Doc says what it does.
	Doc string
}

// Settings lists every value in the order of the struct's fields.
func (l *Loaded) Settings() []Setting {
	var out []Setting
	for s := range l.root.leaves {
		out = append(out, Setting{Path: s.path, Value: s.text(), Origin: s.origin.String(), Env: s.env, Flag: s.flag, Doc: s.doc})
	}
	return out
}

// WriteOrigins prints a table of every value and where it came from.
func (l *Loaded) WriteOrigins(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if _, err := fmt.Fprintln(t, "SETTING\tVALUE\tORIGIN"); err != nil {
		return err
	}
	for _, s := range l.Settings() {
		if _, err := fmt.Fprintf(t, "%s\t%s\t%s\n", s.Path, s.Value, s.Origin); err != nil {
			return err
		}
	}
	return t.Flush()
}

// WriteYAML prints the configuration as it is in force, as a YAML file. Secrets
// are [redacted].
func (l *Loaded) WriteYAML(w io.Writer) error {
	p := &printer{}
	p.section(l.root, "")
	_, err := io.WriteString(w, p.b.String())
	return err
}

// WriteDefaults prints dst, a pointer to a struct that holds the defaults, as a
// YAML file that Load reads, with the documentation of each setting above it.
func WriteDefaults(w io.Writer, dst any) error {
	root, err := newTree(dst)
	if err != nil {
		return err
	}
	p := &printer{comments: true}
	p.section(root, "")
	_, err = io.WriteString(w, p.b.String())
	return err
}

// Undocumented lists the paths of dst's values that have no doc tag; sections may
// go without. A binary's test asserts that it is empty.
func Undocumented(dst any) ([]string, error) {
	root, err := newTree(dst)
	if err != nil {
		return nil, err
	}
	var paths []string
	var look func(*setting)
	look = func(s *setting) {
		for c := range s.named {
			if c.doc == "" && c.kind != section {
				paths = append(paths, c.path)
			}
			switch c.kind {
			case section:
				look(c)
			case sections:
				look(c.grownSample())
			}
		}
	}
	look(root)
	return paths, nil
}

// grownSample is an element that is not in the list. newTree has tried its type.
func (s *setting) grownSample() *setting {
	element := s.sample()
	if err := element.grow(nil); err != nil {
		panic(err)
	}
	for leaf := range element.leaves {
		leaf.env, leaf.flag = "", ""
	}
	return element
}

// printer writes a tree as YAML.
type printer struct {
	b        strings.Builder
	comments bool
}

// section writes the children of s, each line after indent.
func (p *printer) section(s *setting, indent string) {
	first := true
	for c := range s.named {
		if p.comments && !first && indent == "" {
			p.b.WriteString("\n")
		}
		first = false
		p.comment(c, indent)
		p.b.WriteString(indent + c.key + ":")
		switch {
		case c.kind == section:
			p.b.WriteString("\n")
			p.section(c, indent+"  ")
		case c.kind == sections && len(c.children) > 0:
			p.b.WriteString("\n")
			for _, element := range c.children {
				p.element(element, indent+"  ")
			}
		case c.kind == sections:
			p.b.WriteString(" []\n")
			p.example(c, indent)
		default:
			p.b.WriteString(" " + c.text() + "\n")
		}
	}
}

// element writes one struct of a list.
func (p *printer) element(s *setting, indent string) {
	inner := &printer{comments: p.comments}
	inner.section(s, indent+"  ")
	p.b.WriteString(indent + "- " + strings.TrimPrefix(inner.b.String(), indent+"  "))
}

// example shows what an element of the empty list s looks like, commented out.
func (p *printer) example(s *setting, indent string) {
	if !p.comments {
		return
	}
	inner := &printer{comments: true}
	inner.element(s.grownSample(), " ")
	for line := range strings.Lines(inner.b.String()) {
		p.b.WriteString(indent + "#" + line)
	}
}

// comment writes the documentation of s, and how else it is set.
func (p *printer) comment(s *setting, indent string) {
	if !p.comments {
		return
	}
	p.wrap(s.doc, indent+"#")
	p.wrap(strings.TrimSpace(s.env+"  "+dashed(s.flag)), indent+"#")
}

func dashed(flag string) string {
	if flag == "" {
		return ""
	}
	return "--" + flag
}

// wrap writes text in lines that start with prefix.
func (p *printer) wrap(text, prefix string) {
	const width = 80
	line := prefix
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width && line != prefix {
			p.b.WriteString(line + "\n")
			line = prefix
		}
		line += " " + word
	}
	if line != prefix {
		p.b.WriteString(line + "\n")
	}
}

// text is the value of s as one line of YAML.
func (s *setting) text() string {
	switch s.kind {
	case scalar:
		return plain(formatText(s.value))
	case scalars:
		items := formatItems(s.value)
		for i := range items {
			items[i] = plain(items[i])
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return "[]"
}

// plain writes text as a YAML scalar, with quotes where it needs them. YAML's
// double quotes read JSON.
func plain(text string) string {
	switch strings.ToLower(text) {
	case "null", "true", "false", "yes", "no", "on", "off":
		if text != "true" && text != "false" {
			return `"` + text + `"`
		}
		return text
	}
	if ok, _ := regexp.MatchString(`^[A-Za-z0-9/][A-Za-z0-9/._+-]*(:[A-Za-z0-9/._+-]+)*$|^-?[0-9]+$`, text); ok {
		return text
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(text); err != nil {
		return `""`
	}
	return strings.TrimSuffix(b.String(), "\n")
}
