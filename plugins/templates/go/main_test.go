package main

import (
	"strings"
	"testing"

	"redact-fields/millrace"
)

func check(t *testing.T, fields []string, given, expected string) {
	t.Helper()
	redacted, err := redact([]byte(given), fields)
	if err != nil || string(redacted) != expected {
		t.Errorf("%s became %s (%v), not %s", given, redacted, err, expected)
	}
}

func TestFieldsAreRedactedAndEveryOtherByteStays(t *testing.T) {
	check(t, []string{"card", "customer.email"},
		`{"z":1.10, "card" : "4711" ,"a":12345678901234567890,"customer":{"email":"a@b.c","name":"é"}}`,
		`{"z":1.10, "card" : "[redacted]" ,"a":12345678901234567890,"customer":{"email":"[redacted]","name":"é"}}`)
}

func TestANameLeadsIntoEveryObjectOfAnArray(t *testing.T) {
	check(t, []string{"items.card"},
		`{"items":[{"card":null},{"n":1},{"card":{"number":1}}]}`,
		`{"items":[{"card":"[redacted]"},{"n":1},{"card":"[redacted]"}]}`)
	check(t, []string{"card"}, `[{"card":[1,2]},{"c\u0061rd":3}]`, `[{"card":"[redacted]"},{"c\u0061rd":"[redacted]"}]`)
	check(t, []string{"a.b", "a"}, `{"a":{"b":1},"c":2}`, `{"a":"[redacted]","c":2}`)
}

func TestAValueWithoutTheFieldsIsNotTouched(t *testing.T) {
	check(t, []string{"card", "customer.email"}, `{ "customer": "card" }`, "")
}

func TestTombstonesPassAndWhatIsNotJSONIsRefused(t *testing.T) {
	given := []millrace.Given{{Null: true}, {Value: "no JSON"}, {Value: `{"card":1}`, Key: "k"}}
	for _, broken := range []string{"", `{"card":1`, `{} {}`, "\"\xff\"", strings.Repeat("[", 200) + strings.Repeat("]", 200)} {
		given = append(given, millrace.Given{Value: broken})
	}
	verdicts, sent, err := millrace.Run(configure, `{"fields":["card"]}`, given)
	if err != nil {
		t.Fatal(err)
	}
	for i, verdict := range verdicts {
		refused := verdict == millrace.Refuse(verdict.Reason()) && strings.HasPrefix(verdict.Reason(), "the value is not JSON")
		if i != 0 && i != 2 && !refused {
			t.Errorf("%q: %v", given[i].Value, verdict)
		}
	}
	if verdicts[0] != millrace.Keep || verdicts[2] != millrace.Drop {
		t.Error(verdicts)
	}
	if len(sent) != 1 || sent[0].Source != 2 || string(sent[0].Value) != `{"card":"[redacted]"}` {
		t.Error(sent)
	}
}

func TestAConfigWithoutFieldsOrWithOtherKeysIsRefused(t *testing.T) {
	for _, config := range []string{`{}`, `{"fields":[]}`, `{"fields":["a"],"feilds":[]}`, `{"fields":1}`} {
		if _, _, err := millrace.Run(configure, config, nil); err == nil {
			t.Errorf("%s was accepted", config)
		}
	}
}
