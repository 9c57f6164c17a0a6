package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// FileError is one problem in a configuration file.
type FileError struct {
	// File, Line and Column say where; the last two count from 1.
	File         string
	Line, Column int
	// Setting is the path of the setting concerned, or empty.
	Setting string
	// Problem says what is wrong, Hint what to do; Hint may be empty.
	Problem, Hint string
}

// Error is one line: file:line:column: problem; hint.
func (e *FileError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", e.File, e.Line, e.Column)
	if e.Setting != "" {
		b.WriteString(e.Setting + ": ")
	}
	b.WriteString(e.Problem)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// decoder sets the values of a tree from a file and gathers what is wrong.
type decoder struct {
	file     string
	root     *setting
	problems []error
}

// decodeFile sets the settings of root that data, the bytes of file, holds. A
// key without a value leaves the default.
func decodeFile(root *setting, file string, data []byte) []error {
	d := &decoder{file: file, root: root}
	parsed, err := parser.ParseBytes(data, 0)
	if err != nil {
		d.syntax(err)
		return d.problems
	}
	if len(parsed.Docs) > 1 && parsed.Docs[1].Body != nil {
		d.problem(parsed.Docs[1].Body, "", "a second document starts here", "keep one and remove the line ---")
		return d.problems
	}
	for _, doc := range parsed.Docs {
		if doc.Body != nil {
			d.section(root, doc.Body)
		}
	}
	return d.problems
}

// syntax reports what the YAML parser said.
func (d *decoder) syntax(err error) {
	e := &FileError{File: d.file, Line: 1, Column: 1}
	message := err.Error()
	var at yaml.Error
	if errors.As(err, &at) {
		message = at.GetMessage()
		e.Line, e.Column = place(at.GetToken())
	}
	e.Problem = "this is not valid YAML: " + strings.TrimSpace(message)
	switch {
	case strings.Contains(message, "already defined"):
		e.Problem, e.Hint = strings.TrimSpace(message), "keep one of the two"
	case strings.Contains(message, "character '\t'"):
		e.Problem, e.Hint = "this is not valid YAML: a tab stands where only spaces may", "indent with spaces"
	}
	d.problems = append(d.problems, e)
}

func (d *decoder) problem(n ast.Node, path, problem, hint string) {
	e := &FileError{File: d.file, Setting: path, Problem: problem, Hint: hint}
	e.Line, e.Column = place(firstToken(n))
	d.problems = append(d.problems, e)
}

// section sets the children of s from the mapping n.
func (d *decoder) section(s *setting, n ast.Node) {
	d.mark(s, n)
	if n.Type() == ast.NullType || d.fancy(s.path, n) {
		return
	}
	m, ok := n.(ast.MapNode)
	if !ok {
		d.problem(n, s.path, "this is "+describe(n)+", but keys and values belong here",
			"write them below as key: value, indented alike")
		return
	}
	seen := map[string]bool{}
	for entries := m.MapRange(); entries.Next(); {
		key, value := entries.Key(), entries.Value()
		if d.fancy(s.path, key) {
			continue
		}
		name := key.GetToken().Value
		c := s.child(name)
		switch {
		case c == nil:
			d.unknown(s, key, name)
		case seen[name]:
			d.problem(key, c.path, "this key stands here twice", "keep one of the two")
		case value != nil:
			d.value(c, key, value)
		}
		seen[name] = true
	}
}

// mark notes where section s stands, for errors of its Validate.
func (d *decoder) mark(s *setting, n ast.Node) {
	d.from(s, n)
	for _, c := range s.children {
		if c.inline {
			d.mark(c, n)
		}
	}
}

func (d *decoder) from(s *setting, n ast.Node) {
	line, _ := place(firstToken(n))
	s.origin = origin{kind: fromFile, name: d.file, line: line}
}

func (d *decoder) unknown(s *setting, key ast.Node, name string) {
	where := "unknown key " + quote(name)
	if s.path != "" {
		where += " in " + s.path
	}
	d.problem(key, "", where, suggestKey(d.root, s, name))
}

// value sets the setting c from n, which stands after key.
func (d *decoder) value(c *setting, key, n ast.Node) {
	if c.kind == section {
		d.section(c, n)
		if n.Type() != ast.NullType {
			d.from(c, key)
		}
		return
	}
	if n.Type() == ast.NullType || d.fancy(c.path, n) {
		return
	}
	if c.kind == scalar {
		text, ok := scalarText(n)
		if !ok {
			d.problem(n, c.path, "this is "+describe(n)+", but one value belongs here", "")
			return
		}
		if err := setText(c.value, text); err != nil {
			d.problem(n, c.path, err.Error(), "")
			return
		}
		d.from(c, n)
		return
	}
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		hint := "write each item on a line of its own that starts with -"
		if text, ok := scalarText(n); ok && c.kind == scalars {
			hint = "write [" + text + "] for a list of one"
		}
		d.problem(n, c.path, "this is "+describe(n)+", but a list belongs here", hint)
		return
	}
	if c.kind == scalars {
		d.scalars(c, list)
		return
	}
	d.sections(c, list)
}

func (d *decoder) scalars(c *setting, list *ast.SequenceNode) {
	items := reflect.MakeSlice(c.value.Type(), len(list.Values), len(list.Values))
	c.lines = nil
	for i, n := range list.Values {
		line, _ := place(firstToken(n))
		c.lines = append(c.lines, line)
		path := fmt.Sprintf("%s[%d]", c.path, i)
		if d.fancy(path, n) {
			continue
		}
		text, ok := scalarText(n)
		if !ok {
			d.problem(n, path, "this is "+describe(n)+", but one value belongs here", "")
			continue
		}
		if err := setText(items.Index(i), text); err != nil {
			d.problem(n, path, err.Error(), "")
		}
	}
	c.value.Set(items)
	d.from(c, list)
}

func (d *decoder) sections(c *setting, list *ast.SequenceNode) {
	c.value.Set(reflect.MakeSlice(c.value.Type(), len(list.Values), len(list.Values)))
	d.from(c, list)
	if err := c.growElements(nil); err != nil {
		d.problem(list, c.path, err.Error(), "")
		return
	}
	for i, element := range c.children {
		d.section(element, list.Values[i])
	}
}

// fancy reports the parts of YAML that a configuration has no use for.
func (d *decoder) fancy(path string, n ast.Node) bool {
	var what string
	switch n.Type() {
	case ast.AnchorType, ast.AliasType, ast.MergeKeyType:
		what = "anchors, aliases and merge keys"
	case ast.TagType:
		what = "tags (!...)"
	case ast.MappingKeyType:
		what = "complex keys (? ...)"
	default:
		return false
	}
	d.problem(n, path, what+" are not supported", "write the value out")
	return true
}

// scalarText is the text of a scalar as it was written.
func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case ast.ScalarNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// describe names the kind of a node for a user.
func describe(n ast.Node) string {
	if _, ok := n.(ast.MapNode); ok {
		return "a section of keys"
	}
	switch n.(type) {
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	}
	text, _ := scalarText(n)
	return "the value " + quote(text)
}

func quote(s string) string { return fmt.Sprintf("%q", clip(s)) }

// firstToken is where a node starts; a mapping's own token is a colon or brace.
func firstToken(n ast.Node) *token.Token {
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return firstToken(n.Values[0])
		}
	case *ast.MappingValueNode:
		return firstToken(n.Key)
	}
	return n.GetToken()
}

func place(t *token.Token) (line, column int) {
	if t == nil || t.Position == nil {
		return 1, 1
	}
	return max(t.Position.Line, 1), max(t.Position.Column, 1)
}
