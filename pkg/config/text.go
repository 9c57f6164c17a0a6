package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Duration is a time.Duration. Settings of this type are written as ParseDuration takes
// them, in the file, the environment and flags alike.
type Duration = time.Duration

const day = 24 * time.Hour

// ParseDuration takes Go's syntax, such as 500ms, 30s or 1h30m, after days of 24 hours
// where there are any: 7d, 1d12h, 0.5d.
func ParseDuration(text string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a duration: write a number and its unit, such as 500ms, 30s, 1h30m or 7d", text)
	unsigned, negative := strings.CutPrefix(text, "-")
	count, rest, hasDays := strings.Cut(unsigned, "d")
	if !hasDays {
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, bad
		}
		return d, nil
	}
	// The digits of a float alone: no sign, exponent or name.
	n, err := strconv.ParseFloat(count, 64)
	if err != nil || strings.Trim(count, "0123456789.") != "" || n > float64(math.MaxInt64/day)-1 {
		return 0, bad
	}
	d := time.Duration(n * float64(day))
	if rest != "" {
		more, err := time.ParseDuration(rest)
		if err != nil || strings.ContainsAny(rest[:1], "+-") || more > math.MaxInt64-d {
			return 0, bad
		}
		d += more
	}
	if negative {
		d = -d
	}
	return d, nil
}

// durationFlag is a duration as a flag.
type durationFlag struct{ *time.Duration }

func (d durationFlag) Set(text string) (err error) {
	*d.Duration, err = ParseDuration(text)
	return err
}
func (d durationFlag) Type() string   { return "duration" }
func (d durationFlag) String() string { return formatDuration(*d.Duration) }

// DurationVar defines a flag that ParseDuration reads.
func DurationVar(flags *pflag.FlagSet, p *time.Duration, name string, value time.Duration, usage string) {
	*p = value
	flags.Var(durationFlag{p}, name, usage)
}

// setText sets v, whose type isScalar, from its text. The error quotes the text
// and shows what a good one looks like.
func setText(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			if _, secret := u.(*Redacted); secret {
				return err
			}
			return withText(text, err)
		}
		return nil
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		d, err := ParseDuration(text)
		if err != nil {
			return err
		}
		v.SetInt(int64(d))
		return nil
	}
	return setKind(v, text)
}

func withText(text string, err error) error {
	if strings.Contains(err.Error(), text) {
		return err
	}
	return fmt.Errorf("%q: %w", text, err)
}

func setKind(v reflect.Value, text string) error {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is not a truth value: write true or false", text)
		}
		v.SetBool(text == "true")
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%q is not a number, such as 0.5 or 10", text)
		}
		v.SetFloat(f)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil {
			return wholeError(text, err, 0, uint64(math.MaxUint64)>>(64-v.Type().Bits()))
		}
		v.SetUint(n)
	default:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			largest := uint64(math.MaxInt64) >> (64 - v.Type().Bits())
			return wholeError(text, err, -int64(largest)-1, largest)
		}
		v.SetInt(n)
	}
	return nil
}

func wholeError(text string, err error, smallest int64, largest uint64) error {
	if errors.Is(err, strconv.ErrRange) || strings.HasPrefix(text, "-") && smallest == 0 {
		return fmt.Errorf("%q is out of range: write a whole number from %d to %d", text, smallest, largest)
	}
	return fmt.Errorf("%q is not a whole number, such as 8", text)
}

// formatText is the inverse of setText, except that secrets are blotted out.
func formatText(v reflect.Value) string {
	if v.Type() == reflect.TypeFor[time.Duration]() {
		return formatDuration(time.Duration(v.Int()))
	}
	// By pointer, for a method may have either kind of receiver; the value is a
	// copy, for it may not be addressable.
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	switch x := p.Interface().(type) {
	case encoding.TextMarshaler:
		if b, err := x.MarshalText(); err == nil {
			return string(b)
		}
	case fmt.Stringer:
		return x.String()
	}
	return fmt.Sprint(v.Interface())
}

// formatDuration leaves out the zero parts that Go prints: 1h0m0s is 1h.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// splitList cuts the text of a list in a variable or flag at its commas. Spaces
// around an item are dropped; a blank text is the empty list.
func splitList(text string) []string {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	items := strings.Split(text, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

// setList replaces the list v by items.
func setList(v reflect.Value, items []string) error {
	list := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, item := range items {
		if err := setText(list.Index(i), item); err != nil {
			return err
		}
	}
	v.Set(list)
	return nil
}

// formatItems is the texts of the list v.
func formatItems(v reflect.Value) []string {
	items := make([]string, v.Len())
	for i := range items {
		items[i] = formatText(v.Index(i))
	}
	return items
}
