package millrace

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

type none struct{}

// run gives records of the values a, b, c … to a function, and returns what it sent.
func run(t *testing.T, on string, transform TransformFunc) []Sent {
	t.Helper()
	var given []Given
	for _, value := range on {
		given = append(given, Given{Value: string(value)})
	}
	_, sent, err := Run(func(none) (TransformFunc, error) { return transform, nil }, "{}", given)
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

func TestItemsOfOneRecordKeepTheOrderOfTheCalls(t *testing.T) {
	sent := run(t, "ab", func(_ *Record, output *Output) Verdict {
		output.Emit("x", []byte("1"))
		output.Emit("y", []byte("2"))
		output.Emit("x", []byte("3"))
		output.Forward("x")
		return Drop
	})
	var ways [2][]string
	for _, item := range sent {
		ways[item.Source] = append(ways[item.Source], fmt.Sprintf("%s>%s", item.Value, item.Destination))
	}
	for source, way := range ways {
		if got := strings.Join(way, " "); got != "1>x 2>y 3>x >x" {
			t.Error(source, got)
		}
	}
}

func TestWhatIsSetOnSomeItemsIsSetOnTheseOnlyAndInOrder(t *testing.T) {
	sent := run(t, "abcbb", func(record *Record, output *Output) Verdict {
		item := output.Emit(Default, nil)
		if value, _ := record.Value(); string(value) == "b" {
			item.Key([]byte("k")).Key(nil).Timestamp(7).Partition(3).Topic("t").
				Header("h", nil).AddHeader("h", []byte("2")).RemoveHeader("g").AddHeader("n", nil)
		}
		return Drop
	})
	changed := []string{`key "k"`, `key null`, `timestamp 7`, `partition 3`, `topic t`,
		`header h ""`, `added header h "2"`, `header g null`, `added header n null`}
	for i, expected := range [][]string{nil, changed, nil, changed, changed} {
		if !reflect.DeepEqual(sent[i].Changes, expected) {
			t.Error(i, sent[i].Changes)
		}
	}
}

func TestABatchThatGoesOneWayIsOneCall(t *testing.T) {
	output := &Output{}
	for source := range 100 {
		output.source, output.group = uint32(source), 0
		output.Emit("x", nil).Key(nil).AddHeader("n", []byte("1")).AddHeader("n", nil)
	}
	if len(output.groups) != 1 || len(output.groups[0].changes) != 3 {
		t.Error(len(output.groups), len(output.groups[0].changes))
	}
}

func TestAColumnKeepsNullApartFromEmpty(t *testing.T) {
	var column Column
	items := [][]byte{nil, {}, []byte("abc"), nil, []byte("d")}
	for _, item := range items {
		column.push(item)
	}
	for i, item := range items {
		if got, ok := column.get(i); ok != (item != nil) || string(got) != string(item) {
			t.Error(i, got, ok)
		}
	}
}
