"""The knowledge base covers what it claims."""

from data_pipeline.distill import knowledge


def test_the_knowledge_base_is_wide():
    rules = knowledge.python_rules()
    assert len(rules) >= 500 and len({rule.cwe for rule in rules}) >= 430
    assert len({rule.id for rule in knowledge.rules()}) == len(knowledge.rules())
    assert {rule.cwe for rule in knowledge.rules()} <= knowledge.titles().keys()
    assert all(rule.title and rule.description for rule in knowledge.rules())
    assert len(set(knowledge.libraries())) == len(knowledge.libraries()) >= 75
    assert "MITRE" in (knowledge.DATA / "cwe.LICENSE").read_text(encoding="utf-8")
    assert {rule.source for rule in knowledge.select(cwe="089")} == {"cwe", "bandit", "topic"}
